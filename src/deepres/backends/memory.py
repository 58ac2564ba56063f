"""How the process keeps its memory."""

import ctypes


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of giving it back to the system.

    By default glibc unmaps large buffers when they are freed, and training then spends a third of its time on page
    faults, evaluation half. Elsewhere than on Linux with glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # as malloc.h numbers them
    if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25):  # older versions take no more than 32 MB
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 1 << 26)
