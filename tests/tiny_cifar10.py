"""A CIFAR-10 of a few images for tests of files, and the pickles that Python 2 wrote, which Python 3 cannot write."""

import hashlib
import pickle
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepres.data.cifar10 import Split, encode
from deepres.data.release import BIN_FOLDER, FILES, OFFICIAL, PY_FOLDER, RECORD_BYTES, Release


@dataclass(frozen=True)
class TinyCifar10:
    """Six files of a few images each, in the place of the real ones."""

    files: dict[str, bytes]

    @classmethod
    def random(cls, num_images: int = 20) -> "TinyCifar10":
        """So many random images in each file."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (6 * num_images, 3, 32, 32), np.uint8)
        return cls.of(Split(images, rng.integers(0, 10, len(images))), num_images)

    @classmethod
    def of(cls, split: Split, num_images: int) -> "TinyCifar10":
        """So many images in each file, taken from the first; the first again where they do not suffice."""
        places = [np.arange(i * num_images, (i + 1) * num_images) % len(split.labels) for i in range(6)]
        return cls({name: encode(split[at]).tobytes() for name, at in zip(FILES, places, strict=True)})

    @property
    def release(self) -> Release:
        """What functions are given that are to take these files for CIFAR-10."""
        return replace(
            OFFICIAL,
            files={name: md5(content) for name, content in self.files.items()},
            pickles={Path(name).stem: md5(dump_python2(content)) for name, content in self.files.items()},
            images_per_file=len(self.files[FILES[0]]) // RECORD_BYTES,
        )

    def write(self, folder: Path, *, without: tuple[str, ...] = ()) -> Path:
        """Write the files in the binary layout into ``folder / cifar-10-batches-bin``."""
        batches = folder / BIN_FOLDER
        batches.mkdir(parents=True)
        for name, content in self.files.items():
            if name not in without:
                (batches / name).write_bytes(content)
        return folder

    def write_py(self, folder: Path) -> Path:
        """Write the same images as Python 2 pickles into ``folder / cifar-10-batches-py``."""
        batches = folder / PY_FOLDER
        batches.mkdir(parents=True)
        for name, content in self.files.items():
            (batches / Path(name).stem).write_bytes(dump_python2(content))
        return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class TouchWhenLoaded:
    """Pickles to a call that leaves a file, as a hostile pickle would."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def hostile_pickle(trace: Path) -> bytes:
    """A batch that creates the file `trace` where it is unpickled."""
    batch = {b"labels": [0] * 20, b"data": np.zeros((20, 3072), np.uint8), b"extra": TouchWhenLoaded(trace)}
    return pickle.dumps(batch, protocol=4)


def dump_python2(records: bytes) -> bytes:
    """Pickle records of the binary format as Python 2 did, in protocol 2 with its ``str`` as bytes."""
    rows = np.frombuffer(records, np.uint8).reshape(-1, RECORD_BYTES)
    return (
        (pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.BINPUT + b"\x01" + pickle.MARK)
        + (_string(b"batch_label") + _string(b"training batch 1 of 5"))
        + (_string(b"labels") + pickle.EMPTY_LIST + pickle.BINPUT + b"\x02")
        + (pickle.MARK + b"".join(_integer(label) for label in rows[:, 0].tolist()) + pickle.APPENDS)
        + (_string(b"data") + _array(rows[:, 1:].tobytes(), (len(rows), 3072)))
        + (pickle.SETITEMS + pickle.STOP)
    )


def _array(content: bytes, shape: tuple[int, ...]) -> bytes:
    """The opcodes by which Python 2's numpy rebuilds an array of uint8."""
    return (
        (pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.GLOBAL + b"numpy\nndarray\n")
        + (_integer(0) + pickle.TUPLE1 + _string(b"b") + pickle.TUPLE3 + pickle.REDUCE)
        + (pickle.MARK + _integer(1))
        + (pickle.MARK + b"".join(_integer(size) for size in shape) + pickle.TUPLE)
        + (pickle.GLOBAL + b"numpy\ndtype\n" + _string(b"u1") + _integer(0) + _integer(1))
        + (pickle.TUPLE3 + pickle.REDUCE + pickle.MARK + _integer(3) + _string(b"|") + 3 * pickle.NONE)
        + (2 * _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD)
        + (pickle.NEWFALSE + pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        + (pickle.TUPLE + pickle.BUILD)
    )


def _string(text: bytes) -> bytes:
    return pickle.SHORT_BINSTRING + bytes([len(text)]) + text


def _integer(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)
