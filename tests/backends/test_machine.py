"""Cores and memory, with the files that Linux has under /sys/fs/cgroup."""

import os

import pytest

from deepres.backends.machine import memory_bytes, num_cores

GIB = 1 << 30


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine of 8 cores and 16 GiB; writes its control groups' files and returns the folder for `/`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 << 20}.__getitem__, raising=False)

    def write(membership, files):
        contents = {"proc/self/cgroup": membership}
        contents |= {f"sys/fs/cgroup/{name}": content + "\n" for name, content in files.items()}
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("membership", "files", "cores", "memory"),
    [
        ("0::/\n", {}, 8, 16 * GIB),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 8, 16 * GIB),
        ("0::/\n", {"cpu.max": "200000 100000", "memory.max": f"{3 * GIB}"}, 2, 3 * GIB),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1, 16 * GIB),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3, 16 * GIB),
        ("0::/\n", {"cpu.max": "9900000 100000", "memory.max": f"{99 * GIB}"}, 8, 16 * GIB),
        ("0::/job/step\n", {"job/memory.max": f"{2 * GIB}", "job/step/cpu.max": "300000 100000"}, 3, 2 * GIB),
        ("0::/job\n", {"other/memory.max": f"{2 * GIB}", "other/cpu.max": "300000 100000"}, 8, 16 * GIB),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 16 * GIB),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4, 16 * GIB),
        ("1:name=systemd:/\n5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 8, 16 * GIB),
        ("1:name=systemd:/\n5:memory:/a/b\n", {"memory/a/memory.limit_in_bytes": f"{GIB}"}, 8, GIB),
        # A container that sees its own group as the root, but its name as the host has it.
        ("5:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": f"{GIB}"}, 8, GIB),
    ],
)
def test_a_container_or_job_gets_its_share(host, membership, files, cores, memory):
    root = host(membership, files)
    assert num_cores(root) == cores
    assert memory_bytes(root) == memory


def test_where_the_system_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert num_cores(tmp_path) == (os.cpu_count() or 1)
    assert memory_bytes(tmp_path) is None
