"""Ctrl-C and SIGTERM: the run saves its state before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class InterruptedRun(Exception):  # noqa: N818 -- not an error: the user asked for it
    """A run stopped by SIGINT or SIGTERM after a step, its state saved; without a step, several runs."""

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(signal_number).name}{after}, state saved")
        self.signal_number = signal_number


class StopRequest:
    """Whether the user asked the run to stop, and by which signal."""

    signal_number: int | None = None


@contextmanager
def stop_requests(stop: StopRequest) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request that the loop sees; a second one acts as usual."""
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
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
