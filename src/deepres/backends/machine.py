"""The cores and the memory that this process may use, within the limits of its container or batch job."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # below which the system's files lie: proc/self/cgroup and sys/fs/cgroup


def num_cores(root: Path = ROOT) -> int:
    """Return the number of cores; of a container's share of their time, rounded up, 1 at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu", root):
        share = _numbers(group / "cpu.max") or _numbers(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        if len(share) == 2 and min(share) > 0:
            cores = min(cores, math.ceil(share[0] / share[1]))
    return cores


def memory_bytes(root: Path = ROOT) -> int | None:
    """Return the memory in bytes; None where the system does not tell."""
    memory = [
        limit
        for group in _control_groups("memory", root)
        for limit in _numbers(group / "memory.max") or _numbers(group / "memory.limit_in_bytes")
    ]
    if hasattr(os, "sysconf"):
        memory.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(memory, default=None)


def _control_groups(controller: str, system: Path) -> Iterator[Path]:
    """Yield the folders of Linux's control groups, version 2 or 1, in which this process is: a limit in any counts."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    groups = system / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root = groups
        elif controller in controllers.split(","):
            root = groups / controller
        else:
            continue
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _numbers(*files: Path) -> list[int]:
    """Return the numbers in files; none where one is missing, or states no limit."""
    try:
        return [int(word) for file in files for word in file.read_text().split()]
    except (OSError, ValueError):  # "max"
        return []
