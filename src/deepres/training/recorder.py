"""What happens around the steps of a run: it is resumed, evaluated, recorded and saved, and ends with its result."""

import signal
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from deepres.data.cifar10 import CLASSES
from deepres.errors import UserError, extra_needed, first_line
from deepres.files import write_atomically, write_json
from deepres.models import count_parameters, parse_name
from deepres.models.cost import flop_per_image
from deepres.runs.curve import draw_curve
from deepres.runs.directory import ANOTHER_PLACE, Row, RunDir
from deepres.runs.metrics import metrics_of_logits
from deepres.runs.predictions import Predictions
from deepres.runs.schema import EpochRow, Result, RunRecord
from deepres.training.checkpoint import decode_state, encode_state
from deepres.training.claim import SAME_BITS, check_same, last_start
from deepres.training.clock import Clock
from deepres.training.config import RunConfig
from deepres.training.environment import describe_environment
from deepres.training.events import Events
from deepres.training.progress import Reporter, StepState
from deepres.training.sets import Sets
from deepres.training.stopping import InterruptedRun
from deepres.training.trainer import Trainer
from deepres.weights.evaluate import error_percent, predict_logits
from deepres.weights.file import save_weights
from deepres.weights.own import save_own_weights

CURVE_SECONDS = 60.0  # at least, between pictures of a run that is in progress
ESTIMATE_SECONDS = 0.2  # between estimates of the time left, each of which takes as long as starting a GPU's step


class SilentRecorder:
    """Does nothing, for a process that does not lead: it computes its share of steps and evaluations alone."""

    def __init__(self, config: RunConfig, trainer: Trainer, sets: Sets) -> None:
        self.config = config
        self.trainer = trainer
        self.sets = sets
        self.rows: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of what is open."""

    @property
    def recorded_step(self) -> int:
        """The step at which the last row was made."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def load(self, state: dict[str, Any]) -> None:
        """Go back to the state of a checkpoint."""
        self.trainer.load_state(state["trainer"])
        self.rows = state["rows"]

    def begin(self, target: int) -> None:
        """Begin taking steps, up to `target`."""

    def end_step(self) -> None:
        """Take note of a step."""

    def end_epoch(self) -> None:
        """Evaluate the held-out set at the end of an epoch."""
        self.trainer.evaluate(self.sets.held_out[0])
        self.trainer.start_epoch()

    def leave(self) -> None:
        """End the run before its last step, on request."""

    def finish(self) -> dict[str, Any]:
        """End the run after its last step, and return its result.json: empty if this process does not lead."""
        return {}


class Recorder(SilentRecorder):
    """Records a run for the process that leads: it owns the run directory and speaks to the user.

    Args:
        config: with nothing left to "auto".
        record: the content of recipe.json.
        trainer: of this run, at step 0.
        sets: its images.
        run_dir: held by this process.
        reporter: receives the progress.
        checkpoint_minutes: time between checkpoints.
        later: what is put in here is done when the runs beside this one have ended; None: there are none.
    """

    def __init__(
        self,
        config: RunConfig,
        record: RunRecord,
        trainer: Trainer,
        sets: Sets,
        run_dir: RunDir,
        reporter: Reporter,
        checkpoint_minutes: float,
        later: list[Callable[[], None]] | None = None,
    ) -> None:
        super().__init__(config, trainer, sets)
        self.record = record
        self.run_dir = run_dir
        self.reporter = reporter
        self.checkpoint_minutes = checkpoint_minutes
        self.clock = Clock()
        self.events: Events | None = None
        self.target = 0
        self._later = later
        self._saved_step = -1
        self._saved_at = 0.0
        self._drawn_at = time.monotonic()
        self._left: float | None = None  # seconds, by the last estimate
        self._estimate_at = 0.0

    def __exit__(self, *exception: object) -> None:
        """Close the TensorBoard events."""
        if self.events is not None:
            self.events.close()

    def resume(self) -> bytes | None:
        """Go back to the newest undamaged checkpoint, if there is one, and return its content.

        Raises:
            UserError: it is of another run, or every checkpoint is damaged.
        """
        found = self.run_dir.latest_checkpoint()
        if found is None:
            return None
        path, content, damaged = found
        for bad in damaged:
            self.reporter.notice(f"checkpoint {bad} is damaged: using the one before it")
            bad.unlink()
        try:
            state = decode_state(content, self.trainer.device)
            begun = RunRecord.from_json(state["config"], path) if "config" in state else None  # older ones lack it
        except Exception as error:  # whatever a file of another origin makes torch raise
            raise _foreign(path, error) from None
        if begun is not None:
            check_same(begun, self.record, f"checkpoint {path} is of")
        try:
            self.load(state)
            self.clock = Clock(*state["clock"])
        except Exception as error:
            raise _foreign(path, error) from None
        self.trainer.last_checkpoint = str(path)
        self._saved_step = self.trainer.step
        self.reporter.notice(f"resuming {self.run_dir} after step {self.trainer.step:,}")
        if not self.trainer.resumes_exactly:
            self.reporter.notice("here a resumed run is not bit-identical to one that was never interrupted")
        return content

    def record_environment(self, command: Sequence[str] | None = None) -> None:
        """Write environment.json: this start's, with those of earlier starts under "earlier_starts"."""
        config, device = self.config, self.trainer.device
        now = describe_environment(device, config.precision, config.backend, config.workers, command).to_json()
        earlier = []
        if last := last_start(self.run_dir):
            before = last.to_json()
            earlier = [*before.pop("earlier_starts"), before]
            changes = [
                f"{key} {now[key]} after {before[key]}" for key in (*SAME_BITS, "backend") if now[key] != before[key]
            ]
            if changes:
                self.reporter.notice(f"going on with {', '.join(changes)}: the result will not be bit-identical")
        write_json(self.run_dir.environment, {**now, "earlier_starts": earlier})

    def begin(self, target: int) -> None:
        """Put the files back to the state of the checkpoint, and start the clock."""
        self.target = target
        self.run_dir.result.unlink(missing_ok=True)  # of a run that ended early by max_steps and now continues
        self.run_dir.write_metrics(self.rows)  # what was recorded after the checkpoint will be recorded again
        self.events = Events(self.run_dir.tensorboard, self.reporter.notice)
        self.events.write(self.rows)
        recipe, trainer = self.config.recipe, self.trainer
        self.reporter.start(
            trainer.step, target, recipe.batch_size, recipe.total_epochs(num_train=len(self.sets.train[0]))
        )
        self.clock.start()
        self._saved_at = time.monotonic()

    def end_step(self) -> None:
        """Tell the reporter, and save if it is time to."""
        trainer, recipe = self.trainer, self.config.recipe
        self.clock.count(recipe.batch_size)
        totals = trainer.totals
        speed = self.clock.images_per_second
        now = time.monotonic()
        if speed and now >= self._estimate_at:
            self._left = recipe.seconds_left(trainer.step, self.target, trainer.total_steps, speed)
            self._estimate_at = now + ESTIMATE_SECONDS
        self.reporter.step(
            StepState(
                trainer.step, trainer.epochs_done, totals.mean_loss, totals.error, totals.images, speed, self._left
            )
        )
        if now - self._saved_at > 60 * self.checkpoint_minutes:
            self.save()

    def end_epoch(self) -> None:
        """Evaluate the held-out set in the run's own precision, and record.

        Checkpoints come by time alone: on a fast device an epoch takes little longer than writing one. A run that goes
        on from an earlier step evaluates again, to the same row.
        """
        images, labels = self.sets.held_out
        with self.clock.first_use_apart():
            error = error_percent(self.trainer.evaluate(images), labels)
        self.rows.append(self._row(self.trainer.epochs_done, error))
        self.trainer.start_epoch()
        self._publish(self.rows)
        if self._later is None and time.monotonic() - self._drawn_at > CURVE_SECONDS:
            self._drawing(self.rows, notice=lambda _: None)()
            self._drawn_at = time.monotonic()

    def leave(self) -> None:
        """Save, and end the run.

        Raises:
            InterruptedRun: always.
        """
        self.save()
        raise InterruptedRun(self.trainer.stop.signal_number or signal.SIGTERM, self.trainer.step)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        self._saved_at = time.monotonic()
        if self._saved_step == self.trainer.step:
            return
        state = {
            "config": self.record.to_json(),
            "trainer": self.trainer.state(),
            "rows": self.rows,
            "clock": [self.clock.seconds, self.clock.loop_seconds, self.clock.loop_images],
        }
        path = self.run_dir.write_checkpoint(self.trainer.step, encode_state(state))
        self.trainer.last_checkpoint = str(path)
        self._saved_step = self.trainer.step
        self._saved_at = time.monotonic()
        self.reporter.saved(self.trainer.step)

    def finish(self) -> dict[str, Any]:
        """Evaluate the last step in float32; write its row, weights, predictions, the result and, last, the curve."""
        self.save()
        self.reporter.evaluating()
        trainer, sets = self.trainer, self.sets
        test_logits = self._final_logits(sets.test[0])
        test_error = error_percent(test_logits, sets.test[1])
        error = test_error if sets.val is None else error_percent(self._final_logits(sets.val[0]), sets.val[1])
        rows = list(self.rows)
        if self.recorded_step == trainer.step:  # stopped by a max_steps that is behind the epoch's end already
            row = {**rows.pop(), f"{self._held_out}_error": error}
        else:
            row = self._row(trainer.epochs_done + (0 if trainer.at_epoch_end else 1), error)
        rows.append(row)
        self._publish(rows)
        self._write_weights(self.run_dir.weights)
        ema: dict[str, Any] = {}
        if trainer.mean is not None:
            with trainer.mean.in_place():
                ema["test_error_ema"] = error_percent(self._final_logits(sets.test[0]), sets.test[1])
                if sets.val is not None:
                    ema["val_error_ema"] = error_percent(self._final_logits(sets.val[0]), sets.val[1])
                self._write_weights(self.run_dir.mean_weights)
        answers = test_logits.cpu().numpy(), sets.test[1].cpu().numpy()
        write_atomically(self.run_dir.predictions, Predictions.of_logits(*answers).encode())
        result = self._result(rows, test_error)
        result = replace(result, test_metrics=metrics_of_logits(*answers), **ema)
        content = result.to_json()
        write_json(self.run_dir.result, content)
        drawing = self._drawing(rows, self.reporter.notice)
        if self._later is None:
            drawing()
        else:  # the other runs would wait for it
            self._later.append(drawing)
        return content

    @property
    def _held_out(self) -> str:
        return self.record.evaluation.set

    def _row(self, epoch: int, error: float) -> Row:
        """Return a line for metrics.jsonl."""
        trainer = self.trainer
        trainer.read_losses()
        speed = self.clock.images_per_second
        return EpochRow(
            step=trainer.step,
            epoch=epoch,
            learning_rate=trainer.learning_rate,
            train_loss=round(trainer.totals.mean_loss, 6),
            train_error=trainer.totals.error,
            held_out=self._held_out,
            error=error,
            seconds=round(self.clock.seconds, 2),
            images_per_second=round(speed, 1) if speed else None,
        ).to_json()

    def _publish(self, rows: Sequence[Row]) -> None:
        """Write metrics.jsonl, and tell of the last row, which is new."""
        self.run_dir.write_metrics(rows)
        if self.events is not None:
            self.events.write(rows[-1:])
        self.reporter.epoch(rows[-1])

    def _final_logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) as `deepres evaluate` computes them: float32, plain torch."""
        model = deepcopy(self.trainer.model).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

        def forward(batch: Tensor) -> Tensor:
            if self.trainer.must_stop:
                self.leave()
            logits: Tensor = model(batch)
            return logits

        logits = predict_logits(forward, images, self.trainer.stream.normalization)
        self.clock.lap()
        return logits

    def _result(self, rows: Sequence[Row], test_error: float) -> Result:
        trainer, config, recipe = self.trainer, self.config, self.config.recipe
        num_train = len(self.sets.train[0])
        error = f"{self._held_out}_error"
        best = min(rows, key=lambda row: row[error])
        on_val = self._held_out == "val"
        return Result(
            model=config.name,
            option=config.option,
            recipe=recipe.name,
            split=recipe.split,
            seed=config.seed,
            num_parameters=count_parameters(trainer.model),
            flop_per_image=self._flop_per_image(),
            compute=recipe.compute(num_train, steps=trainer.step),
            steps=trainer.step,
            total_steps=trainer.total_steps,
            epochs=round(trainer.step * recipe.batch_size / num_train, 2),
            train_error=rows[-1]["train_error"],
            val_error_last=rows[-1][error] if on_val else None,
            val_error_best=best[error] if on_val else None,
            test_error_last=test_error,
            test_error_best=None if on_val else best[error],
            best_epoch=best["epoch"],
            seconds=round(self.clock.seconds, 2),
            images_per_second=round(self.clock.images_per_second or 0.0, 1),
            device=trainer.device.type,
            precision=config.precision,
            backend=config.backend,
            workers=config.workers,
        )

    def _flop_per_image(self) -> float | None:
        try:
            return flop_per_image(self.trainer.model)
        except Exception:  # whatever a net of one's own raises at a single image
            return None

    def _write_weights(self, path: Path) -> None:
        """Write the weights; of a net of one's own, its state with the normalisation."""
        model, normalization, classes = self.trainer.model, self.trainer.stream.normalization, self.sets.classes
        if not isinstance(self.config.model, str) or parse_name(self.config.model) is None:
            save_own_weights(path, self.config.name, model, normalization, classes)
            return
        named = classes if classes != CLASSES and len(classes) == self.sets.num_classes else None
        save_weights(path, self.config.model, model, normalization, named)

    def _drawing(self, rows: Sequence[Row], notice: Callable[[str], None]) -> Callable[[], None]:
        """Return what draws curve.png; it holds nothing of the net."""
        title = f"{self.config.name}, recipe {self.config.recipe.name}, seed {self.config.seed}"
        return partial(_draw, self.run_dir.curve, list(rows), self._held_out, title, notice)


def _draw(path: Path, rows: Sequence[Row], held_out: str, title: str, notice: Callable[[str], None]) -> None:
    """Draw a curve; a failure, such as that there is no Matplotlib, is no more than a notice."""
    try:
        with extra_needed("it", "report"):
            picture = draw_curve(rows, held_out, title)
        write_atomically(path, picture)
    except Exception as error:  # whatever Matplotlib raises
        notice(f"no {path.name} ({first_line(error)}); the result is complete")


def _foreign(path: object, error: Exception) -> UserError:
    return UserError(f"checkpoint {path} is not of this run ({first_line(error)}): remove it, or give {ANOTHER_PLACE}")
