"""bfloat16 in Triton's interpreter as a GPU computes it: products are exact, sums float32, rounding is to nearest.

The interpreter keeps a bfloat16 number as the 16 bits that it consists of. By itself it multiplies and compares these
as integers, and rounds towards zero.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(handle):
    """Numbers as the interpreter holds them; bfloat16 ones in float32, which has the same exponents: none changes."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    data = (np.asarray(handle.data).astype(np.uint32) << 16).view(np.float32)
    return TensorHandle(data, tl.float32)


def round_to_bfloat16(data):
    """The bits of float32 numbers rounded to the nearest, of two as near to the even one, as torch does it."""
    rounded = torch.from_numpy(np.array(data, np.float32)).bfloat16()  # a copy: numbers may be views of one
    return rounded.view(torch.uint16).numpy()


@pytest.fixture(autouse=True)
def exact_bfloat16(monkeypatch):
    """Replaces in the interpreter what touches bfloat16."""
    cast, dot, binary = (getattr(InterpreterBuilder, name) for name in ("cast_impl", "create_dot", "binary_op"))

    def cast_impl(self, source, target):
        if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        if target.scalar == tl.float32:
            source = widen(source)
        return cast(self, source, target)

    def create_dot(self, a, b, total, *precision):
        return dot(self, widen(a), widen(b), total, *precision)

    def binary_op(self, left, right, operation):
        return binary(self, widen(left), widen(right), operation)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "binary_op", binary_op)
