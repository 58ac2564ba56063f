"""One training run, from its configuration to its result; read `train` as the table of contents."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deepres.curve import draw_curve
from deepres.data.augment import Normalization
from deepres.data.cifar10 import Cifar10
from deepres.data.loader import TrainStream
from deepres.data.splits import stratified_split
from deepres.errors import UserError
from deepres.models import build_model, count_parameters
from deepres.progress import Reporter
from deepres.recipes import Recipe
from deepres.rundir import Row, RunDir, read_json, write_atomically, write_json
from deepres.training.checkpoint import decode_state, encode_state, save_weights
from deepres.training.device import find_compiler, resolve_precision
from deepres.training.environment import describe_environment
from deepres.training.evaluate import error_percent, predict_logits
from deepres.training.loop import Trainer

COMPILE_STEPS = 500  # shorter runs end before compilation has paid for itself
VAL_FRACTION = 0.1  # 5,000 of 50,000


@dataclass(frozen=True)
class RunConfig:
    """What determines a run. "auto" and None mean: as the run was begun, or else what suits the machine."""

    model: str
    recipe: Recipe
    seed: int = 0
    option: str = "A"
    precision: str = "auto"
    """"auto", "float32" or "bfloat16"."""
    compiled: bool | None = None
    """Whether to use torch.compile."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of recipe.json."""
        content = {
            "model": self.model,
            "option": self.option,
            "seed": self.seed,
            "precision": self.precision,
            "compiled": self.compiled,
            "recipe": self.recipe.to_json(),
        }
        return dict(json.loads(json.dumps(content)))  # as it reads back: JSON knows no tuples


class InterruptedRun(Exception):  # noqa: N818 -- not an error: the user asked for it
    """A run stopped by SIGINT or SIGTERM, its state saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}, state saved")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Sets:
    """The images of a run, on its device: uint8 (N, 3, 32, 32) and int64 (N,) each."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]


def train(
    config: RunConfig,
    data: Cifar10,
    path: str | Path,
    *,
    device: torch.device,
    max_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a net in a run directory, or go on with the run that was begun there; return its result.json.

    Args:
        config: what to train and how.
        data: CIFAR-10.
        path: the run directory; created if missing.
        device: where to compute.
        max_steps: stop after so many steps of the schedule, which stays as it is; a later call goes on from there.
        checkpoint_minutes: time between checkpoints within an epoch; each epoch's end has one in any case.
        reporter: is told of the progress.

    Raises:
        UserError: another process holds the directory, or another configuration was begun in it.
        DivergedError: a loss or a weight is not finite.
        InterruptedRun: SIGINT or SIGTERM arrived; the state is saved.
    """
    run_dir = RunDir(path)
    reporter = reporter or Reporter()
    build_model(config.model, option=config.option)  # an unknown name ends here, before anything is written
    total_steps = config.recipe.total_steps(num_train=_num_train(config.recipe, data))
    target = min(total_steps, max_steps or total_steps)
    with run_dir.locked():
        config = claim(run_dir, config, device, target)
        if finished := finished_result(run_dir, target):
            reporter.notice(f"the run in {run_dir} is finished: nothing to do")
            return finished
        run = Run(config, run_dir, load_sets(data, config.recipe, device), total_steps, device, reporter)
        run.resume()
        run.record_environment()
        with stop_requests() as stop:
            run.train_until(target, stop, checkpoint_minutes)
        return run.finish()


def claim(run_dir: RunDir, config: RunConfig, device: torch.device, target: int) -> RunConfig:
    """Write the configuration into a new run directory, or compare it with the one begun there.

    Returns the configuration with nothing left to "auto".

    Raises:
        UserError: a different run was begun here; the message shows the difference.
    """
    begun = read_json(run_dir.recipe) if run_dir.recipe.exists() else None
    if config.precision == "auto":
        precision = begun["precision"] if begun else resolve_precision("auto", device)
        config = replace(config, precision=precision)
    if config.compiled is None:
        pays = target >= COMPILE_STEPS and find_compiler() is not None
        config = replace(config, compiled=begun["compiled"] if begun else pays)
    if begun is None:
        write_json(run_dir.recipe, config.to_json())
    elif differences := list(_differences(begun, config.to_json())):
        raise UserError(
            f"run directory {run_dir} was begun with another configuration ({'; '.join(differences)}): "
            "give the same one, or another --run-dir"
        )
    return config


def _differences(begun: Any, now: Any, name: str = "") -> Iterator[str]:
    """Compare two configurations, by name: "recipe.momentum was 0.9, is 0.8"."""
    if isinstance(begun, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*begun, *now]):
            yield from _differences(begun.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif begun != now:
        yield f"{name} was {begun}, is {now}"


def finished_result(run_dir: RunDir, target: int) -> dict[str, Any] | None:
    """Return the result of a run that has already taken `target` steps, else None, with no result left."""
    if not run_dir.result.exists():
        return None
    result = read_json(run_dir.result)
    if result["steps"] >= target:
        return result
    run_dir.result.unlink()  # it ended early by max_steps and now goes on
    return None


def _num_train(recipe: Recipe, data: Cifar10) -> int:
    if recipe.split == "50k":
        return len(data.train.labels)
    return len(stratified_split(data.train.labels, VAL_FRACTION, recipe.split_seed)[0])


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


class StopRequest:
    """Whether the user asked the run to stop, and by which signal."""

    signal_number: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request that the loop sees; a second one acts as usual."""
    stop = StopRequest()
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            previous[kind] = signal.signal(kind, handle)
    except ValueError:  # not in the main thread, where signals are somebody else's
        pass
    try:
        yield stop
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


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
    ) -> None:
        assert config.compiled is not None
        self.config = config
        self.run_dir = run_dir
        self.sets = sets
        self.device = device
        self.reporter = reporter
        self.normalization = Normalization.fit(sets.train[0], config.recipe.normalization)
        stream = TrainStream(
            *sets.train,
            normalization=self.normalization,
            batch_size=config.recipe.batch_size,
            pad=config.recipe.pad,
            seed=config.seed,
        )
        self.trainer = Trainer(
            name=config.model,
            option=config.option,
            recipe=config.recipe,
            seed=config.seed,
            stream=stream,
            total_steps=total_steps,
            device=device,
            precision=config.precision,
            compiled=config.compiled,
            notice=reporter.notice,
        )
        self.rows: list[Row] = []
        self.clock = Clock()

    @property
    def held_out(self) -> tuple[str, tuple[Tensor, Tensor]]:
        """The set evaluated at each epoch, with its name."""
        return ("val", self.sets.val) if self.sets.val is not None else ("test", self.sets.test)

    def resume(self) -> None:
        """Go back to the newest undamaged checkpoint, if there is one."""
        found = self.run_dir.latest_checkpoint()
        if found is None:
            return
        path, content, damaged = found
        for bad in damaged:
            self.reporter.notice(f"checkpoint {bad} is damaged: using the one before it")
            bad.unlink()
        state = decode_state(content, self.device)
        self.trainer.load_state(state["trainer"])
        self.trainer.last_checkpoint = str(path)
        self.rows = state["rows"]
        self.clock = Clock(*state["clock"])
        self.reporter.notice(f"resuming {self.run_dir} after step {self.trainer.step:,}")

    def record_environment(self) -> None:
        """Write environment.json: this start's, with those of earlier starts under "earlier_starts"."""
        assert self.config.compiled is not None
        now = describe_environment(self.device, self.config.precision, self.config.compiled)
        earlier = []
        if self.run_dir.environment.exists():
            last = read_json(self.run_dir.environment)
            earlier = [*last.pop("earlier_starts"), last]
            if last["device"] != now["device"]:
                self.reporter.notice(
                    f"begun on {last['device']}, going on on {now['device']}: the result will not be bit-identical"
                )
        write_json(self.run_dir.environment, {**now, "earlier_starts": earlier})

    def train_until(self, target: int, stop: StopRequest, checkpoint_minutes: float) -> None:
        """Take steps up to `target`; evaluate, record and save at each epoch's end, and save in between."""
        trainer, clock = self.trainer, self.clock
        self.run_dir.write_metrics(self.rows)  # what was recorded after the checkpoint will be recorded again
        shutil.rmtree(self.run_dir.tensorboard, ignore_errors=True)
        with SummaryWriter(str(self.run_dir.tensorboard)) as events:
            for row in self.rows:
                write_events(events, row)
            self.reporter.start(trainer.step, target, self.config.recipe.batch_size)
            clock.start()
            saved = time.monotonic()
            while trainer.step < target:
                trainer.advance()
                clock.count(self.config.recipe.batch_size)
                totals = trainer.totals
                self.reporter.step(
                    trainer.step, trainer.epochs_done, totals.mean_loss, totals.error, clock.images_per_second
                )
                if trainer.at_epoch_end:
                    self.rows.append(self.make_row(trainer.epochs_done, self.epoch_error()))
                    trainer.start_epoch()
                    write_events(events, self.rows[-1])
                    events.flush()
                    self.save()
                    self.run_dir.write_metrics(self.rows)
                    self.reporter.epoch(self.rows[-1])
                    saved = time.monotonic()
                elif time.monotonic() - saved > 60 * checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
                if stop.signal_number is not None and trainer.step < target:
                    self.save()
                    raise InterruptedRun(stop.signal_number, trainer.step)
            self.save()

    def epoch_error(self) -> float:
        """Evaluate the held-out set in the run's own precision; return the error in percent."""
        _, (images, labels) = self.held_out
        with self.clock.first_use_apart():
            return error_percent(self.trainer.evaluate(images), labels)

    def make_row(self, epoch: int, held_out_error: float) -> Row:
        """Return an epoch's row for metrics.jsonl."""
        trainer = self.trainer
        trainer.read_losses()
        name, _ = self.held_out
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

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "trainer": self.trainer.state(),
            "rows": self.rows,
            "clock": [self.clock.seconds, self.clock.loop_seconds, self.clock.loop_images],
        }
        path = self.run_dir.write_checkpoint(self.trainer.step, encode_state(state))
        self.trainer.last_checkpoint = str(path)

    def finish(self) -> dict[str, Any]:
        """Evaluate the last step in float32, write weights, curve and, last of all, the result."""
        trainer, config, recipe = self.trainer, self.config, self.config.recipe
        self.reporter.evaluating()
        name, held_out = self.held_out
        error = self.final_error(*held_out)
        earlier = [row for row in self.rows if row["step"] < trainer.step]
        if len(earlier) < len(self.rows):  # the last step ended an epoch, which has its row
            row = self.rows[-1] | {f"{name}_error": error}
        else:
            row = self.make_row(trainer.epochs_done + 1, error)
        rows = [*earlier, row]
        best = min(rows, key=lambda r: r[f"{name}_error"])

        result = {
            "model": config.model,
            "option": config.option,
            "recipe": recipe.name,
            "split": recipe.split,
            "seed": config.seed,
            "num_parameters": count_parameters(trainer.model),
            "steps": trainer.step,
            "total_steps": trainer.total_steps,
            "epochs": round(trainer.step * recipe.batch_size / len(self.sets.train[0]), 2),
            "train_error": row["train_error"],
        }
        if name == "test":
            result["test_error_last"] = row["test_error"]
            result["test_error_best"] = best["test_error"]
        else:
            result["val_error_last"] = row["val_error"]
            result["val_error_best"] = best["val_error"]
            result["test_error_last"] = self.final_error(*self.sets.test)
            result["test_error_best"] = None
        result |= {
            "best_epoch": best["epoch"],
            "seconds": round(self.clock.seconds, 2),
            "images_per_second": round(self.clock.images_per_second or 0.0, 1),
            "device": self.device.type,
            "precision": config.precision,
        }
        self.run_dir.write_metrics(rows)
        save_weights(self.run_dir.weights, config.model, trainer.model, self.normalization)
        title = f"{config.model}, recipe {recipe.name}, seed {config.seed}"
        write_atomically(self.run_dir.curve, draw_curve(rows, title))
        write_json(self.run_dir.result, result)
        return result

    def final_error(self, images: Tensor, labels: Tensor) -> float:
        """Return the error in percent as `deepres evaluate` computes it: float32, without compilation."""
        model = self.trainer.model.eval()
        error = error_percent(predict_logits(model, images, self.normalization), labels)
        self.clock.lap()
        return error


def write_events(events: SummaryWriter, row: Row) -> None:
    """Write a row's numbers as TensorBoard scalars."""
    for key, value in row.items():
        if key != "step" and value is not None:
            events.add_scalar(key, value, row["step"])


@dataclass
class Clock:
    """Time over all starts of a run: the whole, and the loop's without start-up and compilation."""

    seconds: float = 0.0
    """Wall time, as of the last `lap`."""
    loop_seconds: float = 0.0
    """The part of it that counts for the speed."""
    loop_images: int = 0
    """Images trained in `loop_seconds`."""

    def start(self) -> None:
        """Begin a start of the run: its first step and first evaluation are apart, for they compile."""
        self._last = time.monotonic()
        self._first_step = True
        self._first_use = True

    def count(self, num_images: int) -> None:
        """Take note of a step that ended now."""
        elapsed = self.lap()
        if not self._first_step:
            self.loop_seconds += elapsed
            self.loop_images += num_images
        self._first_step = False

    @contextmanager
    def first_use_apart(self) -> Iterator[None]:
        """Time an evaluation, which counts for the speed unless it is this start's first."""
        self.loop_seconds += self.lap()
        yield
        elapsed = self.lap()
        if not self._first_use:
            self.loop_seconds += elapsed
        self._first_use = False

    def lap(self) -> float:
        """Add the time since the last call to the run's, and return it."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        self.seconds += elapsed
        return elapsed

    @property
    def images_per_second(self) -> float | None:
        """Speed of the loop as a whole; None before its second step."""
        return self.loop_images / self.loop_seconds if self.loop_images else None
