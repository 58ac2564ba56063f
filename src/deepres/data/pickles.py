"""Reads one batch of ``cifar-10-batches-py`` without letting the pickle run anything.

A pickle is a program: it may name any importable object and call it. A CIFAR-10 batch needs an array of pixels
and a list of labels, so the few numpy names that such a pickle holds are answered with the stand-ins below, which
only keep bytes, and every other name is refused. No numpy code, and no other, is reached from the file.
"""

import io
import pickle
import pickletools
import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_BYTES = 3 * 32 * 32


class _Dtype:
    """Stands for ``numpy.dtype``, of which only uint8 is known."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"holds an array of type {reprlib.repr(code)}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _Array:
    """Stands for ``numpy.ndarray`` and for ``_reconstruct``, which makes an empty one to be filled afterwards."""

    shape: object = None
    content: object = None

    def __init__(self, kind: object, shape: object, code: object) -> None:
        if kind is not _Array or shape != (0,):
            raise pickle.UnpicklingError("rebuilds something else than an empty array")

    def __setstate__(self, state: tuple[object, object, object, object, object]) -> None:
        _version, self.shape, dtype, fortran_order, self.content = state
        if not isinstance(dtype, _Dtype) or fortran_order:
            raise pickle.UnpicklingError("holds an array that is not of uint8 in C order")


class _FromBuffer(_Array):
    """Stands for ``_frombuffer``, by which numpy writes the same array in pickle protocol 5."""

    def __init__(self, content: object, dtype: object, shape: object, order: object) -> None:
        self.__setstate__((1, shape, dtype, order != "C", content))


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            wanted = f"{module}.{name}"[:100]
            raise pickle.UnpicklingError(f"asks for {wanted!r}, which no CIFAR-10 batch needs, and is refused")
        return _KNOWN[module, name]


def decode_batch(raw: bytes, num_images: int) -> NDArray[np.uint8]:
    """Decode one pickled batch to the records of the binary format.

    Args:
        raw: the whole file, as Python 2 wrote it, or dumped anew by Python 3 in protocol 3 or later.
        num_images: how many images the batch must hold (10,000 in CIFAR-10).

    Returns:
        uint8, (num_images, 3073): the label, then the red, green and blue plane of each image.

    Raises:
        pickle.UnpicklingError: the pickle is malformed, asks for anything beyond a uint8 array, or holds
            something else than a batch. The message is a phrase whose subject is the file.
    """
    try:
        _refuse_memory_bomb(raw)
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as exc:  # a broken pickle raises almost anything: EOFError, MemoryError, TypeError, ...
        raise pickle.UnpicklingError(f"is not a readable pickle ({type(exc).__name__})") from exc

    if not isinstance(batch, dict):
        raise pickle.UnpicklingError("holds no dictionary")
    data = batch.get(b"data", batch.get("data"))
    labels = batch.get(b"labels", batch.get("labels"))

    if not isinstance(data, _Array) or data.shape != (num_images, IMAGE_BYTES):
        raise pickle.UnpicklingError(f"holds no array `data` of shape {(num_images, IMAGE_BYTES)}")
    if not isinstance(data.content, bytes | bytearray) or len(data.content) != num_images * IMAGE_BYTES:
        raise pickle.UnpicklingError("holds an array `data` whose content does not fit its shape")
    if not isinstance(labels, list) or len(labels) != num_images:
        raise pickle.UnpicklingError(f"holds no list `labels` of {num_images} numbers")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise pickle.UnpicklingError("holds labels other than the numbers 0 to 9")

    records = np.empty((num_images, 1 + IMAGE_BYTES), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = np.frombuffer(data.content, np.uint8).reshape(num_images, IMAGE_BYTES)
    return records


def _refuse_memory_bomb(raw: bytes) -> None:
    """A memo is an array as long as its highest index, so ten bytes of pickle can claim all memory."""
    for opcode, argument, _position in pickletools.genops(raw):
        if argument is not None and opcode.name.endswith("PUT") and argument > len(raw):
            raise pickle.UnpicklingError("holds a memo index beyond its own length")
