"""One training run, from its configuration to its result; read `take_turns` as the table of contents."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from deepres.backends.memory import keep_freed_memory
from deepres.data.datasets import Dataset
from deepres.data.loader import build_stream
from deepres.errors import UserError
from deepres.runs.directory import RunDir
from deepres.training.checkpoint import decode_state
from deepres.training.claim import claim, finished_result
from deepres.training.config import RunConfig
from deepres.training.group import Group
from deepres.training.nets import build_net
from deepres.training.optimizers import build_optimizers
from deepres.training.progress import Reporter
from deepres.training.recorder import Recorder, SilentRecorder
from deepres.training.sets import Sets, load_sets
from deepres.training.stopping import InterruptedRun, StopRequest, stop_requests
from deepres.training.trainer import Trainer

__all__ = ["InterruptedRun", "Run", "RunConfig", "Sets", "build_trainer", "load_sets", "take_turns", "train"]


@dataclass(frozen=True)
class Run:
    """One training run: what it consists of, and where it is recorded."""

    config: RunConfig
    data: Dataset
    """Training and test images with the names of their classes, see `deepres.data.datasets.load_data`."""
    path: str | Path
    """The run directory; created if missing."""
    reporter: Reporter = field(default_factory=Reporter)
    """Is informed of the progress."""
    max_steps: int | None = None
    """Stop after so many steps of the schedule, which stays as it is; a later call continues from there."""
    command: Sequence[str] | None = None
    """The arguments of `deepres` that make this run, for environment.json; None: those of this process."""

    def __post_init__(self) -> None:
        steps = self.max_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise UserError(f"max_steps is {steps!r}: it must be a whole number of at least 1, or None")


def train(
    config: RunConfig,
    data: Dataset,
    path: str | Path,
    *,
    device: torch.device,
    max_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    reporter: Reporter | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train a net in a run directory, or continue the run that was begun there; return its result.json.

    Args:
        config: what to train and how.
        data: see `Run`, as `path`, `max_steps` and `reporter`.
        path: the run directory.
        device: where to compute.
        max_steps: where to stop early.
        checkpoint_minutes: time between checkpoints; there is one of the last step in any case.
        reporter: is informed of the progress.
        group: the processes that train together; every one of them calls this function with the same arguments.
            Process 0 does all that is said here, the others compute their shares and return an empty dictionary.

    Raises:
        UserError: another process holds the directory, or another configuration was begun in it.
        DivergedError: a loss or a weight is not finite.
        LostWorkerError: another process of the group died; the run continues from the last checkpoint.
        InterruptedRun: SIGINT or SIGTERM arrived; the state is saved.
    """
    run = Run(config, data, path, reporter or Reporter(), max_steps)
    turns = take_turns(run, device, checkpoint_minutes, group)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result


def take_turns(
    run: Run,
    device: torch.device,
    checkpoint_minutes: float,
    group: Group | None = None,
    stop: StopRequest | None = None,
    later: list[Callable[[], None]] | None = None,
) -> Generator[None, None, dict[str, Any]]:
    """Do what `train` does in turns: get ready in the first, then take a step in each; return the run's result.json.

    Args:
        run: what to train.
        device: see `train`, as `checkpoint_minutes` and `group`.
        checkpoint_minutes: time between checkpoints.
        group: the processes that train together.
        stop: asks the run to stop; None: SIGINT and SIGTERM do, once it is ready.
        later: is given what may wait until the runs beside this one have ended; None: there are none.
    """
    keep_freed_memory()
    run_dir, group = RunDir(run.path), group or Group()
    config = replace(run.config, workers=group.size)
    sets = load_sets(run.data, config.recipe, device, config.fraction)
    total_steps = config.recipe.total_steps(num_train=len(sets.train[0]))
    target = min(total_steps, run.max_steps or total_steps)
    # Unknown names, of a net or of an optimizer, end here, before anything is written.
    build_optimizers(
        config.recipe, build_net(config.model, option=config.option, seed=0, num_classes=sets.num_classes)
    )

    with run_dir.locked() if group.rank == 0 else nullcontext():
        recorder: SilentRecorder | None
        if group.rank > 0:
            recorder = follow(config, sets, device, group)
        elif (recorder := lead(run, config, sets, target, device, group, checkpoint_minutes, later)) is None:
            run.reporter.notice(f"the run in {run_dir} is finished: nothing to do")
        if recorder is None:
            result = finished_result(run_dir, target) if group.rank == 0 else None
            return result.to_json() if result else {}
        if stop is not None:
            recorder.trainer.stop = stop
        yield
        with stop_requests(recorder.trainer.stop) if stop is None else nullcontext(), recorder:
            yield from take_steps(recorder, target)
            return recorder.finish()


def take_steps(recorder: SilentRecorder, target: int) -> Iterator[None]:
    """Take steps up to `target`, evaluating at epochs' ends; the row of the last step is left to `finish`."""
    trainer, config = recorder.trainer, recorder.config
    recorder.begin(target)
    while trainer.step < target:
        if trainer.at_epoch_end and recorder.recorded_step < trainer.step:
            if config.evaluates_after(trainer.epochs_done):
                recorder.end_epoch()
            else:
                trainer.start_epoch()
        trainer.advance()
        recorder.end_step()
        if trainer.step < target and trainer.must_stop:
            recorder.leave()
            return
        yield


def lead(
    run: Run,
    config: RunConfig,
    sets: Sets,
    target: int,
    device: torch.device,
    group: Group,
    checkpoint_minutes: float,
    later: list[Callable[[], None]] | None,
) -> Recorder | None:
    """Claim the directory, build the run's trainer there, resume it, and let the other processes know of it.

    Returns None if the run is finished already.
    """
    run_dir, reporter, fall_back = RunDir(run.path), run.reporter, config.backend == "auto"
    config = claim(run_dir, config, sets, device, target, reporter)
    if finished_result(run_dir, target):
        group.broadcast(None)
        return None
    trainer = build_trainer(config, sets, device, group, notice=reporter.notice, fall_back=fall_back)
    config = replace(config, backend=trainer.backend.name)
    record = config.record(sets.record)
    recorder = Recorder(config, record, trainer, sets, run_dir, reporter, checkpoint_minutes, later)
    state = recorder.resume()
    recorder.record_environment(run.command)
    group.broadcast((config.precision, config.backend, config.evaluate_every, state))
    return recorder


def follow(config: RunConfig, sets: Sets, device: torch.device, group: Group) -> SilentRecorder | None:
    """Build the trainer of the run that process 0 leads, in the state of its checkpoint; None if it is finished."""
    if (message := group.broadcast()) is None:
        return None
    precision, backend, evaluate_every, state = message
    config = replace(config, precision=precision, backend=backend, evaluate_every=evaluate_every)
    recorder = SilentRecorder(config, build_trainer(config, sets, device, group, notice=lambda _: None), sets)
    if state is not None:
        recorder.load(decode_state(state, device))
    return recorder


def build_trainer(
    config: RunConfig,
    sets: Sets,
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
        stream=build_stream(
            *sets.train,
            config.recipe,
            config.seed,
            num_classes=sets.num_classes,
            normalization=config.start.normalization.to(device) if config.start else None,
        ),
        total_steps=config.recipe.total_steps(num_train=len(sets.train[0])),
        device=device,
        precision=config.precision,
        backend=config.backend,
        notice=notice,
        fall_back=fall_back,
        group=group,
        num_classes=sets.num_classes,
        start=config.start,
    )
