"""CIFAR-10 on disk: where it lies, what its files must hash to, how bytes become arrays.

Two layouts are read: the official binary one, ``cifar-10-batches-bin``, and ``cifar-10-batches-py``, which
torchvision leaves behind. Every load checks every file against its published md5, which `deepres.data.release` has.
"""

import hashlib
import os
import pickle
import shlex
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from deepres.data.release import BIN_FOLDER, FILES, OFFICIAL, PY_FOLDER, RECORD_BYTES, TEST_FILE, Release
from deepres.errors import UserError

CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

Records = NDArray[np.uint8]  # (N, 3073)


@dataclass(frozen=True)
class Split:
    """One part of the data set, in the official order."""

    images: NDArray[np.uint8]
    """(N, 3, 32, 32), pixels 0 to 255, channels red, green, blue."""
    labels: NDArray[np.int64]
    """(N,), indices into ``CLASSES``."""

    def __getitem__(self, index: slice | NDArray[np.int64]) -> "Split":
        """Return some of the images, with their labels."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Cifar10:
    """The whole data set: 50,000 training and 10,000 test images."""

    train: Split
    test: Split

    @property
    def name(self) -> str:
        """What recipe.json calls it."""
        return "CIFAR-10"

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""
        return CLASSES


class BadFileError(UserError):
    """A data file that is missing, truncated or altered, and what brings it back."""

    def __init__(self, path: Path, fault: str, way_out: str) -> None:
        self.fault = f"{path} {fault}"
        super().__init__(f"{self.fault}: {way_out}")


def default_data_dir() -> Path:
    """The user's cache folder for deepres, as the operating system has it."""
    return platformdirs.user_cache_path("deepres") / "data"


def resolve_data_dir(data_dir: str | Path | None) -> Path:
    """The data directory: the argument, else the environment's DEEPRES_DATA, else the user's cache.

    Raises:
        UserError: the path begins with ``~`` and there is no such home.
    """
    path = Path(data_dir or os.environ.get("DEEPRES_DATA") or default_data_dir())
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise UserError(f"data directory {path}: there is no such home folder; write the path in full") from exc


def load_cifar10(data_dir: str | Path | None = None, release: Release = OFFICIAL) -> Cifar10:
    """Read CIFAR-10 from disk and check every file; nothing is downloaded.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-bin`` or, where that is absent,
            ``cifar-10-batches-py``; either of those two folders itself will do. None: see ``resolve_data_dir``.
        release: what the files must be.

    Raises:
        UserError: there is no data set, or a file of it is missing, truncated, altered or unreadable.

    Example:
        >>> import deepres
        >>> deepres.load_cifar10().train.images.shape
        (50000, 3, 32, 32)
    """
    read, folder = _find(data_dir, release)
    train = [decode(read(folder, name, release)) for name in FILES if name != TEST_FILE]
    return Cifar10(
        train=Split(
            images=np.concatenate([split.images for split in train]),  # (50000, 3, 32, 32)
            labels=np.concatenate([split.labels for split in train]),  # (50000,)
        ),
        test=decode(read(folder, TEST_FILE, release)),
    )


def check_cifar10(data_dir: str | Path | None = None, release: Release = OFFICIAL) -> None:
    """Check every file as ``load_cifar10`` does, with the same errors, in the memory of one of them."""
    read, folder = _find(data_dir, release)
    for name in FILES:
        read(folder, name, release)


def _find(data_dir: str | Path | None, release: Release) -> tuple[Callable[[Path, str, Release], Records], Path]:
    root = resolve_data_dir(data_dir)
    try:
        if holds_bin(root):
            return read_bin, bin_folder(root)
        if holds_py(root):
            return read_py, py_folder(root)
    except OSError as exc:
        raise _unreadable(root, exc) from exc
    raise UserError(f"there is no CIFAR-10 in {root}: run `{fetch_command(root)}`{_archive_hint(root, release)}")


def _archive_hint(root: Path, release: Release) -> str:
    """Say that an archive lies there, which fetching takes the files from."""
    found = next((name for name in release.archives if (root / name).is_file()), None)
    return f", which takes them from {found}, without a network" if found else ""


def decode(records: Records) -> Split:
    """Records of the binary format, uint8 (N, 3073), to images and labels; the arrays are new."""
    images = records[:, 1:].reshape(-1, 3, 32, 32)  # (N, 3, 32, 32)
    return Split(images=np.array(images, order="C"), labels=records[:, 0].astype(np.int64))


def encode(split: Split) -> Records:
    """Images and labels to records of the binary format, uint8 (N, 3073): the inverse of ``decode``."""
    num_images = len(split.images)
    records = np.empty((num_images, RECORD_BYTES), np.uint8)
    records[:, 0] = split.labels
    records[:, 1:] = split.images.reshape(num_images, RECORD_BYTES - 1)
    return records


def bin_folder(root: Path) -> Path:
    """The folder that holds the six binary files, or is to hold them: in ``root``, or ``root`` itself."""
    return _folder(root, BIN_FOLDER, FILES)


def py_folder(root: Path) -> Path:
    """The folder that holds the six pickled batches: in ``root``, or ``root`` itself."""
    return _folder(root, PY_FOLDER, [Path(name).stem for name in FILES])


def holds_bin(root: Path) -> bool:
    """Whether at least one of the binary files is there."""
    return any((bin_folder(root) / name).exists() for name in FILES)


def holds_py(root: Path) -> bool:
    """Whether at least one of the pickled batches is there."""
    return any((py_folder(root) / Path(name).stem).exists() for name in FILES)


def _folder(root: Path, name: str, files: Sequence[str]) -> Path:
    """The folder that holds some of the files: in ``root``, in a folder of a folder there, or ``root`` itself.

    Unpacking programs nest a folder twice, and Keras lays it in ``cifar-10-batches-py-target``.
    """
    target = root / f"{name}-target"
    for folder in (root / name, root / name / name, target / name, target, root):
        if any((folder / file).exists() for file in files):
            return folder
    return root if root.name == name else root / name


def is_published(name: str, content: bytes, release: Release = OFFICIAL) -> bool:
    """Whether content has the published md5 of the binary file ``name``."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == release.files[name]


def read_bin(folder: Path, name: str, release: Release = OFFICIAL) -> Records:
    """Read one binary file, such as ``data_batch_1.bin``, and check it.

    Returns:
        uint8, (N, 3073), N = 10,000 in the official release.

    Raises:
        BadFileError: the file is missing, truncated or altered.
        UserError: the file cannot be read.
    """
    path = folder / name
    command = fetch_command(folder)
    size = _size(path, f"run `{command}`")
    delete = f"delete it and run `{command}`"
    if size < release.file_bytes:
        raise BadFileError(path, f"is truncated ({size:,} bytes instead of {release.file_bytes:,})", delete)
    if size > release.file_bytes:
        raise BadFileError(path, f"is altered ({size:,} bytes instead of {release.file_bytes:,})", delete)
    content = _read(path)
    if not is_published(name, content, release):
        raise BadFileError(path, "is altered (its md5 is not the published one)", delete)
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)


def read_py(folder: Path, name: str, release: Release = OFFICIAL) -> Records:
    """Read the pickled batch that answers to the binary file ``name``, and check it.

    Returns:
        uint8, (N, 3073), N = 10,000 in the official release.

    Raises:
        BadFileError: the file is missing or altered; an altered one is not unpickled.
        UserError: the file cannot be read.
    """
    path = folder / Path(name).stem
    again = f"delete the folder {folder} and run `{fetch_command(folder)}`, or download that folder again"
    if _size(path, again) > 2 * release.file_bytes:  # a batch is 1% larger than the binary file
        raise BadFileError(path, "is altered (it is far too large)", again)
    records = decode_pickle(name, _read(path), release)
    if records is None:
        raise BadFileError(path, "is altered (its md5 is not the published one)", again)
    return records


def decode_pickle(name: str, content: bytes, release: Release = OFFICIAL) -> Records | None:
    """Decode the pickled batch that answers to the binary file ``name``.

    A pickle is a program, and loading it runs it. It is safe here because only content with the published md5 is
    loaded, which is what the makers of the data set wrote: an array and three lists.

    Returns:
        uint8, (N, 3073), as in the binary format; None, with nothing unpickled, where the md5 is another.
    """
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != release.pickles[Path(name).stem]:
        return None
    batch = pickle.loads(content, encoding="bytes")
    records = np.empty((release.images_per_file, RECORD_BYTES), np.uint8)
    records[:, 0] = batch[b"labels"]
    records[:, 1:] = batch[b"data"]
    return records


def fetch_command(folder: Path) -> str:
    """The command that puts the data where ``folder``, a data directory or a folder of batches, belongs."""
    data_dir = folder.parent if folder.name in (BIN_FOLDER, PY_FOLDER) else folder
    return f"deepres fetch --data-dir {shlex.quote(str(data_dir))}"


def _size(path: Path, way_out: str) -> int:
    """Size in bytes, before anything is read: the path may lead to something huge or endless."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise BadFileError(path, "is missing", way_out) from exc
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file: move it away, then {way_out}")
    return status.st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({exc.strerror or exc}): fix its permissions or use another --data-dir")
