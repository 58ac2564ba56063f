"""A kernel with all that it is called with: what a step consists of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """A kernel's call on memory that stays where it is, so that it may be repeated and recorded."""

    kernel: Any
    """The function that Triton compiled; Triton has no types."""
    grid: tuple[int, ...]
    """How many programs there are, in up to three dimensions."""
    arguments: Mapping[str, Tensor | float | None]
    warps: int = 4
    """Groups of 32 threads of a program."""
    stages: int = 1
    """Turns of a loop that are underway at once: the loads of later ones are begun in an earlier one."""

    def __call__(self) -> None:
        """Start the kernel on the current stream; the first time it is compiled."""
        self.kernel[self.grid](**self.arguments, **self._options)

    def compile(self) -> Any:
        """Return the compiled kernel without starting it."""
        return self.kernel.warmup(**self.arguments, grid=self.grid, **self._options)

    @property
    def _options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}
