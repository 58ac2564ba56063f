"""The time a run takes, over all its starts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
