"""Several training runs in one process, which take turns: one small net leaves most of a GPU idle."""

import gc
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

import torch

from deepres.backends.device import first_failure
from deepres.errors import UserError, first_line
from deepres.training.stopping import InterruptedRun, StopRequest, stop_requests
from deepres.training.train import Run, take_turns


class LostDeviceError(UserError):
    """The device computes no more, as after an access to memory that is not there; every run on it is lost with it."""

    exit_code = 1


@dataclass(frozen=True)
class Ended:
    """How one of several runs ended: with a result or with an error."""

    run: Run
    result: dict[str, Any] | None = None
    """The content of its result.json."""
    error: Exception | None = None
    """What `train` would have raised."""


def train_together(
    runs: Iterable[Run],
    *,
    device: torch.device,
    at_a_time: int,
    checkpoint_minutes: float = 5.0,
    ended: Callable[[Ended], None] = lambda _: None,
) -> list[Ended]:
    """Train several runs in turns, one step each, and return how each ended, in the order in which they did.

    Each leaves in its run directory what `train` leaves there, with the same bits; its times are those it took beside
    the others. On an NVIDIA GPU each computes on a stream of its own, so that their steps overlap. A run that fails,
    because it diverges for example, is left out, and the others continue. Curves are drawn when all have ended.

    Args:
        runs: each in another directory. The next one is asked for when there is a place for it.
        device: where to compute.
        at_a_time: how many take turns.
        checkpoint_minutes: time between checkpoints of a run.
        ended: is called as soon as a run has ended.

    Raises:
        InterruptedRun: SIGINT or SIGTERM arrived; the state of every run that was training is saved.
        LostDeviceError: the device computes no more; the runs continue from their last checkpoints.
    """
    waiting, stop = iter(runs), StopRequest()
    all_ended: list[Ended] = []
    later: list[Callable[[], None]] = []
    places = [own_stream(device) for _ in range(at_a_time)]
    active: list[tuple[Run, Generator[None, None, dict[str, Any]], AbstractContextManager[Any]]] = []
    with stop_requests(stop):
        try:
            while True:
                while places and stop.signal_number is None and (run := next(waiting, None)) is not None:
                    if all_ended:
                        gc.collect()  # images and nets of those runs, parts of which refer to one another in circles
                    turns = take_turns(run, device, checkpoint_minutes, stop=stop, later=later)
                    active.append((run, turns, places.pop()))
                if not active:
                    break
                for place in list(active):
                    if (end := take_turn(*place)) is None:
                        continue
                    active.remove(place)
                    places.append(place[-1])
                    ended(end)
                    all_ended.append(end)
                    if end.error is not None:
                        check_device(device, end.error)
                        clear_frames(end.error.__traceback__)  # which hold the net and all that belongs to it
        finally:
            for _, turns, _ in active:
                turns.close()
    for act in later:
        act()
    if stop.signal_number is not None:
        raise InterruptedRun(stop.signal_number)
    return all_ended


def take_turn(
    run: Run, turns: Generator[None, None, dict[str, Any]], stream: AbstractContextManager[Any]
) -> Ended | None:
    """Let a run take its turn on its stream; return how it ended if this was its last."""
    try:
        with stream:
            next(turns)
    except StopIteration as end:
        return Ended(run, result=end.value)
    except Exception as error:  # whatever it is, the other runs have no part in it
        return Ended(run, error=error)
    return None


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which an NVIDIA or AMD GPU computes on a new stream; elsewhere it changes nothing."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def check_device(device: torch.device, error: Exception) -> None:
    """Look whether the device still computes after a run failed.

    Raises:
        LostDeviceError: it does not.
    """
    if isinstance(error, UserError | InterruptedRun):
        return
    if reason := first_failure(device):
        raise LostDeviceError(f"{device} computes no more ({reason}), after: {first_line(error)}") from error
