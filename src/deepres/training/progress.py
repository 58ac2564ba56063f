"""What a run in progress tells its caller."""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any, Self, TextIO

from deepres.runs.directory import Row


@dataclass(frozen=True)
class StepState:
    """How a run stands after a step."""

    step: int
    epoch: int
    """Epochs that ended."""
    loss: float
    """Running, in nats."""
    error: float
    """Running, in percent."""
    images: int
    """The images that loss and error are the mean of: those since the epoch began, on a GPU without the latest."""
    images_per_second: float | None
    """None before the second step, as what follows from it."""
    seconds_left: float | None


class Reporter:
    """Receives a run's progress; this one keeps silent. The command line's shows a bar. A context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """The run has ended, one way or another."""

    def notice(self, message: str) -> None:
        """Take a line that the user should see."""

    def start(self, step: int, target: int, batch_size: int, total_epochs: int) -> None:
        """Training begins after `step` steps and goes to `target`; the whole schedule has `total_epochs`."""

    def step(self, state: StepState) -> None:
        """Take the state after a step."""

    def saved(self, step: int) -> None:
        """The run now has a checkpoint of this step."""

    def evaluating(self) -> None:
        """Training is over; the last evaluation begins."""

    def epoch(self, row: Row) -> None:
        """Take the row of metrics.jsonl of an epoch that ended."""


class JsonReporter(Reporter):
    """Writes each event as a JSON object, one a line, for the program that started the run.

    Each has "event", the name of the method, and the method's arguments. If that program has gone, so that nobody
    reads any more, the run is asked to save its state and end, as by SIGTERM.

    Args:
        stream: where to write.
        run: the name of the run, for each object, where there are several; None: there is one.
    """

    STEP_SECONDS = 0.5  # steps in between are not written

    def __init__(self, stream: TextIO, run: str | None = None) -> None:
        self._stream: TextIO | None = stream
        self._run = {} if run is None else {"run": run}
        self._told = 0.0

    def write(self, event: str, **content: Any) -> None:
        """Write one object."""
        if self._stream is None:
            return
        try:
            print(json.dumps({"event": event, **self._run, **content}), file=self._stream, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream = None
            os.kill(os.getpid(), signal.SIGTERM)

    def notice(self, message: str) -> None:
        """See `Reporter.notice`."""
        self.write("notice", message=message)

    def start(self, step: int, target: int, batch_size: int, total_epochs: int) -> None:
        """See `Reporter.start`."""
        self.write("start", step=step, target=target, batch_size=batch_size, total_epochs=total_epochs)

    def step(self, state: StepState) -> None:
        """See `Reporter.step`."""
        if (now := time.monotonic()) - self._told >= self.STEP_SECONDS:
            self._told = now
            self.write("step", **asdict(state))

    def saved(self, step: int) -> None:
        """See `Reporter.saved`."""
        self.write("saved", step=step)

    def evaluating(self) -> None:
        """See `Reporter.evaluating`."""
        self.write("evaluating")

    def epoch(self, row: Row) -> None:
        """See `Reporter.epoch`."""
        self.write("epoch", row=row)
