"""Cores and memory, with the files that a container has under /sys/fs/cgroup."""

import os

import pytest

from deepres.grid import machine

GIB = 1 << 30


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine of 8 cores and 16 GiB; the folder of its control groups."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 << 20}.__getitem__, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 8, 16 * GIB),
        ({"cpu.max": "max 100000", "memory.max": "max"}, 8, 16 * GIB),
        ({"cpu.max": "200000 100000", "memory.max": f"{3 * GIB}"}, 2, 3 * GIB),
        ({"cpu.max": "50000 100000"}, 1, 16 * GIB),
        ({"cpu.max": "250000 100000"}, 3, 16 * GIB),
        ({"cpu.max": "9900000 100000", "memory.max": f"{99 * GIB}"}, 8, 16 * GIB),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 16 * GIB),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4, 16 * GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 8, 16 * GIB),
        ({"memory/memory.limit_in_bytes": f"{GIB}"}, 8, GIB),
    ],
)
def test_a_container_gets_its_share(host, files, cores, memory):
    for name, content in files.items():
        (host / name).parent.mkdir(exist_ok=True)
        (host / name).write_text(content + "\n")
    assert machine.num_cores() == cores
    assert machine.memory_bytes() == memory


def test_where_the_system_tells_nothing(host, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    assert machine.num_cores() == (os.cpu_count() or 1)
    assert machine.memory_bytes() is None
