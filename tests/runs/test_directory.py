import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepres.errors import UserError
from deepres.files import read_json, write_atomically, write_json
from deepres.runs.directory import CHECKPOINTS_KEPT, RunDir


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with run_dir.locked():
        yield run_dir


def test_checkpoints_are_found_newest_first_and_old_ones_go(run_dir):
    for step in (5, 50, 7, 100_000_000):
        run_dir.write_checkpoint(step, str(step).encode())
    assert len(list(run_dir.checkpoints.iterdir())) == CHECKPOINTS_KEPT
    path, content, damaged = run_dir.latest_checkpoint()
    assert (content, damaged) == (b"100000000", [])
    path.write_bytes(b"else")
    _, content, damaged = run_dir.latest_checkpoint()
    assert (content, damaged) == (b"50", [path])


def test_no_checkpoint_and_leftovers_of_a_killed_process(run_dir):
    (run_dir.checkpoints / ".step-00000009-0123456789abcdef.pt.tmp").write_bytes(b"half")
    assert run_dir.latest_checkpoint() is None


def test_metrics_and_json_read_back(run_dir):
    rows = [{"step": 1, "test_error": 50.25}, {"step": 2, "test_error": 40.0}]
    run_dir.write_metrics(rows)
    assert run_dir.read_metrics() == rows
    assert run_dir.metrics.read_text().count("\n") == 2
    write_json(run_dir.result, {"a": [1, None, True]})
    assert read_json(run_dir.result) == {"a": [1, None, True]}


@pytest.mark.parametrize("content", ["{", "", "[1]", "\udcff"])
def test_damaged_json_is_named(run_dir, content):
    run_dir.result.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"result.json is damaged"):
        read_json(run_dir.result)


def test_damaged_metrics_are_named(run_dir):
    run_dir.metrics.write_text('{"step": 1}\n{"st')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged"):
        run_dir.read_metrics()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch, call):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*(("os.fsync", fail) if call == "fsync" else ("pathlib.Path.replace", fail)))
    with pytest.raises(UserError, match=r"cannot write .*result.json \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_looking_whether_a_run_is_in_use_makes_none_fail(tmp_path):
    looking = threading.Event()

    def look():
        while not looking.is_set():
            assert not RunDir(tmp_path).in_use()
            time.sleep(0.001)

    run_dir = RunDir(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        looked = pool.submit(look)
        for _ in range(100):
            with run_dir.locked():
                pass
            time.sleep(0.001)
        looking.set()
        looked.result()


def test_locks_exclude_and_are_released(tmp_path):
    first, second = RunDir(tmp_path), RunDir(tmp_path)
    with first.locked(), pytest.raises(UserError, match="in use by another process"), second.locked():
        pytest.fail("both hold the lock")
    with second.locked():
        assert second.checkpoints.is_dir()
