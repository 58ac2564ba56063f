"""The cores and the memory that this process may use, within the limits of the container that it runs in."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # as a container sees it: its own limits


def num_cores() -> int:
    """Return the number of cores; of a container's share of their time, rounded up, 1 at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _limits("cpu.max") or _limits("cpu/cpu.cfs_quota_us") + _limits("cpu/cpu.cfs_period_us")
    if len(quota) == 2 and min(quota) > 0:
        cores = min(cores, math.ceil(quota[0] / quota[1]))
    return cores


def memory_bytes() -> int | None:
    """Return the memory in bytes; None where the system does not tell."""
    memory = _limits("memory.max") or _limits("memory/memory.limit_in_bytes")
    if hasattr(os, "sysconf"):
        memory.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(memory, default=None)


def _limits(name: str) -> list[int]:
    """Return the numbers in a file of version 2 or 1 of Linux's control groups; none where there is no limit."""
    try:
        return [int(word) for word in (CGROUP / name).read_text().split()]
    except (OSError, ValueError):  # no such file; or "max"
        return []
