"""One training run, from its configuration to its result; read `train` as the table of contents."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deepres.backends.choose import choose
from deepres.backends.memory import keep_freed_memory
from deepres.data.cifar10 import Cifar10
from deepres.data.loader import build_stream
from deepres.data.splits import stratified_split
from deepres.errors import UserError, first_line
from deepres.files import read_json, write_atomically, write_json
from deepres.models import build_model, count_parameters
from deepres.models.cost import flop_per_image
from deepres.recipes.recipe import Recipe
from deepres.runs.directory import Row, RunDir
from deepres.runs.predictions import Predictions
from deepres.training.checkpoint import decode_state, encode_state, save_weights
from deepres.training.clock import Clock
from deepres.training.environment import describe_environment
from deepres.training.group import Group
from deepres.training.progress import Reporter, StepState
from deepres.training.stopping import InterruptedRun, stop_requests
from deepres.training.trainer import Trainer
from deepres.weights.evaluate import error_percent, predict_logits

IMAGE_ROWS = 32
VAL_FRACTION = 0.1  # 5,000 of 50,000
SAME_BITS = ("device", "device_name", "num_threads", "torch")  # must be the same for a run to go on bit-identical
RESULT_KEYS = ("model", "option", "recipe", "seed", "steps", "epochs", "test_error_last", "test_error_best")


@dataclass(frozen=True)
class RunConfig:
    """What determines a run. "auto" means: as the run was begun, or else what suits the machine."""

    model: str
    recipe: Recipe
    seed: int = 0
    option: str = "A"
    precision: str = "auto"
    """"auto", "float32" or "bfloat16"."""
    backend: str = "auto"
    """"auto", "fused", "compiled" or "eager", see `deepres.backends`. It determines the rounding and nothing else, so
    that a run may go on with another one."""
    workers: int = 1
    """Processes among which each mini-batch is divided; batch statistics are those of each share."""
    evaluate_every: int = 1
    """Epochs from one evaluation, and its row of metrics.jsonl, to the next; the last step is always evaluated. It
    determines no weight, so that a run may go on with another one."""

    def evaluates_after(self, epoch: int) -> bool:
        """Tell whether the end of an epoch, counted from 1, is followed by an evaluation."""
        return epoch % self.evaluate_every == 0

    def to_json(self) -> dict[str, Any]:
        """Return the content of recipe.json."""
        content = {
            "model": self.model,
            "option": self.option,
            "seed": self.seed,
            "precision": self.precision,
            "workers": self.workers,
            "recipe": self.recipe.to_json(),
        }
        return dict(json.loads(json.dumps(content)))  # as it reads back: JSON knows no tuples


@dataclass(frozen=True)
class Sets:
    """The images of a run, on its device: uint8 (N, 3, 32, 32) and int64 (N,) each."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """The set evaluated at each epoch: val if there is one."""
        return self.test if self.val is None else self.val


def train(
    config: RunConfig,
    data: Cifar10,
    path: str | Path,
    *,
    device: torch.device,
    max_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    reporter: Reporter | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train a net in a run directory, or go on with the run that was begun there; return its result.json.

    Args:
        config: what to train and how.
        data: CIFAR-10.
        path: the run directory; created if missing.
        device: where to compute.
        max_steps: stop after so many steps of the schedule, which stays as it is; a later call goes on from there.
        checkpoint_minutes: time between checkpoints; each evaluation is followed by one in any case.
        reporter: is told of the progress.
        group: the processes that train together; every one of them calls this function with the same arguments.
            Process 0 does all that is said here, the others compute their shares and return an empty dictionary.

    Raises:
        UserError: another process holds the directory, or another configuration was begun in it.
        DivergedError: a loss or a weight is not finite.
        LostWorkerError: another process of the group died; the last checkpoint is what the run goes on from.
        InterruptedRun: SIGINT or SIGTERM arrived; the state is saved.
    """
    run_dir = RunDir(path)
    reporter = reporter or Reporter()
    build_model(config.model, option=config.option)  # an unknown name ends here, before anything is written
    keep_freed_memory()
    sets = load_sets(data, config.recipe, device)
    total_steps = config.recipe.total_steps(num_train=len(sets.train[0]))
    target = min(total_steps, max_steps or total_steps)
    group = group or Group()
    config = replace(config, workers=group.size)
    if group.rank > 0:
        return follow(config, sets, total_steps, target, device, group)
    with run_dir.locked():
        fall_back = config.backend == "auto"
        config = claim(run_dir, config, device, target, reporter)
        if finished := finished_result(run_dir, target):
            reporter.notice(f"the run in {run_dir} is finished: nothing to do")
            group.broadcast(None)
            return finished
        run = Run(config, run_dir, sets, total_steps, device, reporter, group, fall_back=fall_back)
        state = run.resume()
        run.record_environment()
        group.broadcast((config.precision, run.config.backend, state))
        with stop_requests(run.trainer.stop), run.open_events():
            run.train_until(target, checkpoint_minutes)
            return run.finish()


def follow(
    config: RunConfig, sets: Sets, total_steps: int, target: int, device: torch.device, group: Group
) -> dict[str, Any]:
    """Compute this process's share of each step of the run that process 0 leads."""
    message = group.broadcast()
    if message is None:
        return {}
    config = replace(config, precision=message[0], backend=message[1])
    trainer = build_trainer(config, sets, total_steps, device, group, notice=lambda _: None)
    evaluated = 0
    if message[2] is not None:
        state = decode_state(message[2], device)
        trainer.load_state(state["trainer"])
        evaluated = last_step(state["rows"])
    with stop_requests(trainer.stop):
        while trainer.step < target and not trainer.must_stop:
            if trainer.at_epoch_end and evaluated < trainer.step:
                if config.evaluates_after(trainer.epochs_done):
                    trainer.evaluate(sets.held_out[0])
                trainer.start_epoch()
                evaluated = trainer.step
            trainer.advance()
    return {}


def last_step(rows: Sequence[Row]) -> int:
    """Return the step at which the last row was made."""
    return int(rows[-1]["step"]) if rows else 0


def claim(run_dir: RunDir, config: RunConfig, device: torch.device, target: int, reporter: Reporter) -> RunConfig:
    """Write the configuration into a new run directory, or compare it with the one begun there.

    Returns the configuration with nothing left to "auto", but for the backend of a run that is finished.

    Raises:
        UserError: a different run was begun here; the message shows the difference.
    """
    begun = read_json(run_dir.recipe, required=("precision",)) if run_dir.recipe.exists() else None
    if begun and config.precision == "auto":
        config = replace(config, precision=begun["precision"])
    if not (begun and finished_result(run_dir, target)):
        config = settle(run_dir, config, device, target, reporter)
    if begun is None:
        write_json(run_dir.recipe, config.to_json())
    elif differences := list(_differences(begun, config.to_json())):
        raise UserError(
            f"run directory {run_dir} was begun with another configuration ({'; '.join(differences)}): "
            "give the same one, or another --run-dir"
        )
    return config


def settle(run_dir: RunDir, config: RunConfig, device: torch.device, target: int, reporter: Reporter) -> RunConfig:
    """Replace what is left to "auto": by what the run had at its last start, else by what is fastest here."""
    last = last_start(run_dir) if config.backend == "auto" else None
    if last and last["backend"] == "fused" and config.precision != "auto":
        return replace(config, backend="fused")  # if that works no more, its place is taken when it is built
    choice = choose(
        build_model(config.model, option=config.option, generator=torch.Generator()).to(device),
        device,
        precision=config.precision,
        backend=config.backend,
        num_steps=target,
        sizes=[IMAGE_ROWS, *config.recipe.small_sizes],
        notice=reporter.notice if last is None else lambda _: None,
    )
    backend = choice.backend
    if last and last["backend"] != backend:
        backend = last["backend"]
        reporter.notice(
            f"going on with the backend {backend}, as the run began: --backend {choice.backend} is faster "
            "(other rounding)"
        )
    return replace(config, precision=choice.precision, backend=backend)


def last_start(run_dir: RunDir) -> dict[str, Any] | None:
    """Return environment.json, or None if there is none that can be used; nothing but notices depends on it."""
    try:
        return read_json(run_dir.environment, required=("earlier_starts", "backend", *SAME_BITS))
    except UserError:
        return None


def _differences(begun: Any, now: Any, name: str = "") -> Iterator[str]:
    """Compare two configurations, by name: "recipe.momentum was 0.9, is 0.8"."""
    if isinstance(begun, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*begun, *now]):
            yield from _differences(begun.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif begun != now:
        yield f"{name} was {begun}, is {now}"


def finished_result(run_dir: RunDir, target: int) -> dict[str, Any] | None:
    """Return the result of a run that has already taken `target` steps, else None: it is to go on."""
    if not run_dir.result.exists():
        return None
    result = read_json(run_dir.result, required=RESULT_KEYS)
    return result if result["steps"] >= target else None


def load_sets(data: Cifar10, recipe: Recipe, device: torch.device) -> Sets:
    """Put the images on the device, split as the recipe says."""
    images, labels = (torch.from_numpy(array) for array in (data.train.images, data.train.labels))
    test = (torch.from_numpy(data.test.images).to(device), torch.from_numpy(data.test.labels).to(device))
    if recipe.split == "50k":
        return Sets(train=(images.to(device), labels.to(device)), val=None, test=test)
    parts = [
        (images[index].to(device), labels[index].to(device))
        for index in map(torch.from_numpy, stratified_split(data.train.labels, VAL_FRACTION, recipe.split_seed))
    ]
    return Sets(train=parts[0], val=parts[1], test=test)


def build_trainer(
    config: RunConfig,
    sets: Sets,
    total_steps: int,
    device: torch.device,
    group: Group,
    notice: Callable[[str], None],
    *,
    fall_back: bool = False,
) -> Trainer:
    """Build the trainer of a run, at step 0; `fall_back` is that of `build_backend`."""
    return Trainer(
        name=config.model,
        option=config.option,
        recipe=config.recipe,
        seed=config.seed,
        stream=build_stream(*sets.train, config.recipe, config.seed),
        total_steps=total_steps,
        device=device,
        precision=config.precision,
        backend=config.backend,
        notice=notice,
        fall_back=fall_back,
        group=group,
    )


class Run:
    """A trainer with its run directory: evaluation, records and checkpoints around the steps."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        sets: Sets,
        total_steps: int,
        device: torch.device,
        reporter: Reporter,
        group: Group,
        *,
        fall_back: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.sets = sets
        self.device = device
        self.reporter = reporter
        self.trainer = build_trainer(config, sets, total_steps, device, group, reporter.notice, fall_back=fall_back)
        self.config = replace(config, backend=self.trainer.backend.name)
        self.rows: list[Row] = []
        self.clock = Clock()
        self.saved_step = -1

    @property
    def held_out_name(self) -> str:
        """The set evaluated at each epoch: "val" or "test"."""
        return "test" if self.sets.val is None else "val"

    def resume(self) -> bytes | None:
        """Go back to the newest undamaged checkpoint, if there is one, and return its content."""
        found = self.run_dir.latest_checkpoint()
        if found is None:
            return None
        path, content, damaged = found
        for bad in damaged:
            self.reporter.notice(f"checkpoint {bad} is damaged: using the one before it")
            bad.unlink()
        try:
            state = decode_state(content, self.device)
            self.trainer.load_state(state["trainer"])
            self.rows = state["rows"]
            self.clock = Clock(*state["clock"])
        except Exception as error:  # whatever a file of another origin makes torch raise
            raise UserError(
                f"checkpoint {path} is not of this run ({first_line(error)}): remove it, or give another --run-dir"
            ) from None
        self.trainer.last_checkpoint = str(path)
        self.saved_step = self.trainer.step
        self.reporter.notice(f"resuming {self.run_dir} after step {self.trainer.step:,}")
        return content

    def record_environment(self) -> None:
        """Write environment.json: this start's, with those of earlier starts under "earlier_starts"."""
        config = self.config
        now = describe_environment(self.device, config.precision, config.backend, config.workers)
        earlier = []
        if last := last_start(self.run_dir):
            earlier = [*last.pop("earlier_starts"), last]
            changes = [
                f"{key} {now[key]} after {last[key]}" for key in (*SAME_BITS, "backend") if now[key] != last[key]
            ]
            if changes:
                self.reporter.notice(f"going on with {', '.join(changes)}: the result will not be bit-identical")
        write_json(self.run_dir.environment, {**now, "earlier_starts": earlier})

    def train_until(self, target: int, checkpoint_minutes: float) -> None:
        """Take steps up to `target`; between them evaluate, record and save at epochs' ends, and save at times.

        The row of the last step is left to `finish`.
        """
        trainer, clock = self.trainer, self.clock
        self.run_dir.result.unlink(missing_ok=True)  # of a run that ended early by max_steps and now goes on
        self.run_dir.write_metrics(self.rows)  # what was recorded after the checkpoint will be recorded again
        self.write_events(self.rows)
        recipe = self.config.recipe
        total_epochs = recipe.total_epochs(len(self.sets.train[0]))
        self.reporter.start(trainer.step, target, recipe.batch_size, total_epochs)
        clock.start()
        saved = time.monotonic()
        while trainer.step < target:
            if trainer.at_epoch_end and last_step(self.rows) < trainer.step:
                if self.config.evaluates_after(trainer.epochs_done):
                    self.end_epoch()
                    saved = time.monotonic()
                else:
                    trainer.start_epoch()
            trainer.advance()
            clock.count(self.config.recipe.batch_size)
            totals = trainer.totals
            speed = clock.images_per_second
            left = recipe.seconds_left(trainer.step, target, trainer.total_steps, speed) if speed else None
            self.reporter.step(
                StepState(trainer.step, trainer.epochs_done, totals.mean_loss, totals.error, speed, left)
            )
            if time.monotonic() - saved > 60 * checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            if trainer.step < target:
                self.leave_if_asked()
        self.save()

    def leave_if_asked(self) -> None:
        """Save and end the run if the user asked for it.

        Raises:
            InterruptedRun: so it was.
        """
        if self.trainer.must_stop:
            self.save()
            raise InterruptedRun(self.trainer.stop.signal_number or signal.SIGTERM, self.trainer.step)

    def end_epoch(self) -> None:
        """Evaluate, record and save."""
        self.rows.append(self.make_row(self.trainer.epochs_done, self.epoch_error()))
        self.trainer.start_epoch()
        self.save(again=True)
        self.record(self.rows)

    def record(self, rows: Sequence[Row]) -> None:
        """Write metrics.jsonl, and tell of the last row, which is new."""
        self.run_dir.write_metrics(rows)
        self.write_events(rows[-1:])
        self.reporter.epoch(rows[-1])

    @contextmanager
    def open_events(self) -> Iterator[None]:
        """Begin the TensorBoard events anew, in one file: what a killed start wrote is among the rows."""
        shutil.rmtree(self.run_dir.tensorboard, ignore_errors=True)
        with SummaryWriter(str(self.run_dir.tensorboard)) as self.events:
            yield

    def write_events(self, rows: Sequence[Row]) -> None:
        """Add rows to the TensorBoard events."""
        for row in rows:
            for key, value in row.items():
                if key != "step" and value is not None:
                    self.events.add_scalar(key, value, row["step"])
        self.events.flush()

    def epoch_error(self) -> float:
        """Evaluate the held-out set in the run's own precision; return the error in percent."""
        images, labels = self.sets.held_out
        with self.clock.first_use_apart():
            return error_percent(self.trainer.evaluate(images), labels)

    def make_row(self, epoch: int, held_out_error: float) -> Row:
        """Return an epoch's row for metrics.jsonl."""
        trainer = self.trainer
        trainer.read_losses()
        name = self.held_out_name
        speed = self.clock.images_per_second
        return {
            "step": trainer.step,
            "epoch": epoch,
            "learning_rate": trainer.learning_rate,
            "train_loss": round(trainer.totals.mean_loss, 6),
            "train_error": trainer.totals.error,
            f"{name}_error": held_out_error,
            "seconds": round(self.clock.seconds, 2),
            "images_per_second": round(speed, 1) if speed else None,
        }

    def save(self, *, again: bool = False) -> None:
        """Write a checkpoint, unless this step has one; `again` replaces it."""
        if self.saved_step == self.trainer.step and not again:
            return
        state = {
            "trainer": self.trainer.state(),
            "rows": self.rows,
            "clock": [self.clock.seconds, self.clock.loop_seconds, self.clock.loop_images],
        }
        path = self.run_dir.write_checkpoint(self.trainer.step, encode_state(state))
        self.trainer.last_checkpoint = str(path)
        self.saved_step = self.trainer.step
        self.reporter.saved(self.trainer.step)

    def finish(self) -> dict[str, Any]:
        """Evaluate the last step in float32, write its row, weights, predictions, curve and, last, the result."""
        trainer, config, recipe = self.trainer, self.config, self.config.recipe
        self.reporter.evaluating()
        name = self.held_out_name
        epoch = trainer.epochs_done + (0 if trainer.at_epoch_end else 1)
        test_logits = self.final_logits(self.sets.test[0])
        test_error = error_percent(test_logits, self.sets.test[1])
        val = self.sets.val
        held_out_error = test_error if val is None else error_percent(self.final_logits(val[0]), val[1])
        rows = list(self.rows)
        if last_step(rows) == trainer.step:  # stopped by a max_steps that is behind the epoch's end already
            row = {**rows.pop(), f"{name}_error": held_out_error}
        else:
            row = self.make_row(epoch, held_out_error)
        rows.append(row)
        best = min(rows, key=lambda r: r[f"{name}_error"])
        self.record(rows)

        result = {
            "model": config.model,
            "option": config.option,
            "recipe": recipe.name,
            "split": recipe.split,
            "seed": config.seed,
            "num_parameters": count_parameters(trainer.model),
            "flop_per_image": flop_per_image(trainer.model),
            "compute": recipe.compute(len(self.sets.train[0]), steps=trainer.step),
            "steps": trainer.step,
            "total_steps": trainer.total_steps,
            "epochs": round(trainer.step * recipe.batch_size / len(self.sets.train[0]), 2),
            "train_error": row["train_error"],
        }
        if name == "test":
            result["test_error_last"] = test_error
            result["test_error_best"] = best["test_error"]
        else:
            result["val_error_last"] = row["val_error"]
            result["val_error_best"] = best["val_error"]
            result["test_error_last"] = test_error
            result["test_error_best"] = None
        result |= {
            "best_epoch": best["epoch"],
            "seconds": round(self.clock.seconds, 2),
            "images_per_second": round(self.clock.images_per_second or 0.0, 1),
            "device": self.device.type,
            "precision": config.precision,
            "backend": config.backend,
            "workers": config.workers,
        }
        save_weights(self.run_dir.weights, config.model, trainer.model, trainer.stream.normalization)
        predictions = Predictions.of_logits(test_logits.cpu().numpy(), self.sets.test[1].cpu().numpy())
        write_atomically(self.run_dir.predictions, predictions.encode())
        title = f"{config.model}, recipe {recipe.name}, seed {config.seed}"
        from deepres.runs.curve import draw_curve  # here, since Matplotlib takes most of a second to import

        write_atomically(self.run_dir.curve, draw_curve(rows, title))
        write_json(self.run_dir.result, result)
        return result

    def final_logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) as `deepres evaluate` computes them: float32, plain torch."""
        model = deepcopy(self.trainer.model).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

        def forward(batch: Tensor) -> Tensor:
            self.leave_if_asked()
            logits: Tensor = model(batch)
            return logits

        logits = predict_logits(forward, images, self.trainer.stream.normalization)
        self.clock.lap()
        return logits
