"""A CIFAR-10 of 120 images for tests of files, and the pickles that Python 2 wrote, which Python 3 cannot write."""

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepres.data import cifar10


@dataclass(frozen=True)
class TinyCifar10:
    """Six files of 20 random images each, in the place of the real ones."""

    files: dict[str, bytes]

    def write(self, folder: Path, *, without: tuple[str, ...] = ()) -> Path:
        """Write the files in the binary layout into ``folder / cifar-10-batches-bin``."""
        batches = folder / cifar10.BIN_FOLDER
        batches.mkdir(parents=True)
        for name, content in self.files.items():
            if name not in without:
                (batches / name).write_bytes(content)
        return folder

    def write_py(self, folder: Path) -> Path:
        """Write the same images as Python 2 pickles into ``folder / cifar-10-batches-py``."""
        batches = folder / cifar10.PY_FOLDER
        batches.mkdir(parents=True)
        for name, content in self.files.items():
            (batches / Path(name).stem).write_bytes(dump_python2(content))
        return folder


def dump_python2(
    records: bytes, *, labels: list[int] | None = None, array: bytes | None = None, keys: type = bytes
) -> bytes:
    """Pickle records of the binary format as Python 2 did, in protocol 2 with its ``str`` as bytes."""
    rows = np.frombuffer(records, np.uint8).reshape(-1, cifar10.RECORD_BYTES)
    if labels is None:
        labels = rows[:, 0].tolist()
    if array is None:
        array = dump_array(rows[:, 1:].tobytes(), (len(rows), 3072))
    return (
        (pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.BINPUT + b"\x01" + pickle.MARK)
        + (_key("batch_label", keys) + _string(b"training batch 1 of 5"))
        + (_key("labels", keys) + pickle.EMPTY_LIST + pickle.BINPUT + b"\x02")
        + (pickle.MARK + b"".join(_integer(label) for label in labels) + pickle.APPENDS)
        + (_key("data", keys) + array)
        + (pickle.SETITEMS + pickle.STOP)
    )


def dump_array(
    content: bytes,
    shape: tuple[int, ...],
    *,
    dtype: bytes = b"u1",
    empty_shape: int = 0,
    fortran: bytes = pickle.NEWFALSE,
) -> bytes:
    """The opcodes by which Python 2's numpy rebuilds an array."""
    return (
        (pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.GLOBAL + b"numpy\nndarray\n")
        + (_integer(empty_shape) + pickle.TUPLE1 + _string(b"b") + pickle.TUPLE3 + pickle.REDUCE)
        + (pickle.MARK + _integer(1))
        + (pickle.MARK + b"".join(_integer(size) for size in shape) + pickle.TUPLE)
        + (pickle.GLOBAL + b"numpy\ndtype\n" + _string(dtype) + _integer(0) + _integer(1))
        + (pickle.TUPLE3 + pickle.REDUCE + pickle.MARK + _integer(3) + _string(b"|") + 3 * pickle.NONE)
        + (2 * _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD)
        + (fortran + pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        + (pickle.TUPLE + pickle.BUILD)
    )


def _key(name: str, keys: type) -> bytes:
    if keys is bytes:
        return _string(name.encode())
    return pickle.BINUNICODE + struct.pack("<I", len(name)) + name.encode()


def _string(text: bytes) -> bytes:
    return pickle.SHORT_BINSTRING + bytes([len(text)]) + text


def _integer(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)
