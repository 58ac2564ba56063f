"""Memory in huge pages, where the system has them: an access then seldom waits for the translation of its address."""

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21  # bytes, on x86-64, and on ARM where small pages have 4 KB
CACHE_LINE = 64
BLOCK = 1 << 25  # bytes, of which only pages that are written to take memory
# Tensors of images have sizes that are powers of two. Side by side, all would start at the same place of the caches.
GAP = 5 * CACHE_LINE


class HugePages:
    """Hands out tensors from blocks of memory, which live as long as a tensor in them."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)  # of the last block

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return zeros of this shape that start at a cache line."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes > len(self._free):
            self._free = _new_block(max(num_bytes, BLOCK))
        tensor = self._free[:num_bytes].view(dtype).view(shape)
        self._free = self._free[-(-num_bytes // CACHE_LINE) * CACHE_LINE + GAP :]
        return tensor


def _new_block(num_bytes: int) -> Tensor:
    """Return so many zeros that start at a huge page."""
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a kernel that was built without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    start = -block.data_ptr() % HUGE_PAGE
    return block[start : start + num_bytes]
