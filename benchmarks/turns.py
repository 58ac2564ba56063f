"""Two ways to do the same, timed in turns."""

import time
from collections.abc import Callable
from statistics import median


def milliseconds(function: Callable[[], object], times: int) -> float:
    """Return the time of one call, the mean of some."""
    begin = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - begin) / times * 1e3


def in_turns(
    before: Callable[[], object], after: Callable[[], object], rounds: int, times: int
) -> tuple[float, float, float]:
    """Return the medians over rounds of the milliseconds of either, and of their ratio in a round."""
    measured = [(milliseconds(before, times), milliseconds(after, times)) for _ in range(rounds)]
    one, other = zip(*measured, strict=True)
    return median(one), median(other), median(a / b for a, b in measured)
