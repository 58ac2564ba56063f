"""`deepres train-together`: the runs that `deepres grid` gives to one process."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from traceback import print_exception
from typing import TYPE_CHECKING

import click

from deepres.cli.options import CHECKPOINT_MINUTES, DEVICE
from deepres.cli.train import configure, train
from deepres.errors import UserError, first_line
from deepres.grid.train_process import ERROR_MARK
from deepres.runs.directory import RunDir
from deepres.streams import say
from deepres.training.progress import JsonReporter

if TYPE_CHECKING:
    from deepres.training.together import Ended
    from deepres.training.train import Run


@click.command(
    "train-together", hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.option("--at-a-time", type=click.IntRange(min=1), required=True, help="How many runs take turns.")
@DEVICE
@CHECKPOINT_MINUTES
def train_together(at_a_time: int, device: str, checkpoint_minutes: float) -> None:
    """Train the runs that standard input names, a line each: a JSON list of arguments of `deepres train`.

    A line is read when there is a place for its run. Standard output has the events of all runs as `deepres train
    --progress json` has those of one: each event has "run", the name of the run directory, and the last one, "ended",
    how it ended. Device and time between checkpoints are those of this command, whose further options are ignored.
    """
    from deepres.backends.device import resolve_device
    from deepres.training.stopping import InterruptedRun
    from deepres.training.together import train_together

    chosen = resolve_device(device, lambda notice: say(f"deepres: {notice}"))
    try:
        train_together(
            read_runs(), device=chosen, at_a_time=at_a_time, checkpoint_minutes=checkpoint_minutes, ended=tell_end
        )
    except InterruptedRun as interrupted:
        say(f"deepres: {interrupted}")
        sys.exit(128 + interrupted.signal_number)


def read_runs() -> Iterator["Run"]:
    """Yield the runs that standard input names, and tell of those that cannot begin. Each data set is loaded once."""
    from deepres.data.datasets import load_data
    from deepres.training.train import Run

    load_once = cache(load_data)
    for line in sys.stdin:
        arguments: list[str] = json.loads(line)
        options = train.make_context("train", list(arguments)).params
        path: Path = options["run_dir"]
        try:
            config = configure(**options)
            data = load_once(options["data"], options["data_dir"], image_size=options["image_size"])
        except Exception as error:  # whatever a net or a data set of one's own raises
            tell_failure(path, error)
            continue
        yield Run(config, data, path, JsonReporter(sys.stdout, path.name), command=["train", *arguments])


def tell_end(end: "Ended") -> None:
    """Tell how a run ended."""
    from deepres.training.stopping import InterruptedRun

    path = Path(end.run.path)
    if end.error is None:
        tell(path, "finished")
    elif isinstance(end.error, InterruptedRun):
        tell(path, "stopped")
    else:
        tell_failure(path, end.error)


def tell_failure(path: Path, error: Exception) -> None:
    """Tell that a run failed; its log gets what `deepres train` would print."""
    with suppress(OSError), RunDir(path).log.open("a") as log:
        if isinstance(error, UserError):
            print(f"{ERROR_MARK}{error}", file=log)
        else:
            print_exception(error, file=log)
    tell(path, "failed", first_line(error))


def tell(path: Path, state: str, message: str = "") -> None:
    """Write the last event of a run."""
    JsonReporter(sys.stdout, path.name).write("ended", state=state, message=message)
