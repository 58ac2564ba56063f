"""A kernel with all that it is called with: what a step consists of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NUM_WARPS = 4  # groups of 32 threads of a program
# The loads of a loop's next turn are not begun in this one: Triton would let them bypass the L1 cache, and a
# convolution reads each value nine times.
NUM_STAGES = 1


@dataclass(frozen=True)
class Launch:
    """A kernel's call on memory that stays where it is, so that it may be repeated and recorded."""

    kernel: Any
    """The function that Triton compiled; Triton has no types."""
    grid: tuple[int, ...]
    """How many programs there are, in up to three dimensions."""
    arguments: Mapping[str, Tensor | float | None]

    def __call__(self) -> None:
        """Start the kernel on the current stream; the first time it is compiled."""
        self.kernel[self.grid](**self.arguments, **self._options)

    def compile(self) -> Any:
        """Return the compiled kernel without starting it."""
        return self.kernel.warmup(**self.arguments, grid=self.grid, **self._options)

    @property
    def _options(self) -> dict[str, int]:
        return {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
