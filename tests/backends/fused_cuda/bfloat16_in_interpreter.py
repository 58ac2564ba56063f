"""That bfloat16 in the interpreter, see `exact_bfloat16`, is bfloat16: for all numbers, against torch."""

import pytest
import torch
import triton
import triton.language as tl
from exact_bfloat16 import exact_bfloat16  # noqa: F401 (a fixture)


@triton.jit
def convert(from_ptr, to_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(to_ptr + at, tl.load(from_ptr + at).to(to_ptr.dtype.element_ty))


@triton.jit
def positive(from_ptr, to_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(to_ptr + at, tl.load(from_ptr + at) > 0)


@triton.jit
def multiply(a_ptr, b_ptr, to_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.full((SIZE, SIZE), 1.0, tl.float32)
    tl.store(to_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), total, input_precision="ieee"))


@pytest.fixture
def all_numbers():
    """Every number of bfloat16, among them infinities, NaN, both zeros and those below the smallest normal one."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)


def assert_same_bits(found, expected):
    """NaN equals NaN, whichever."""
    assert torch.equal(found.isnan(), expected.isnan())
    bits = torch.int16 if found.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(found.view(bits)[~found.isnan()], expected.view(bits)[~expected.isnan()])


def test_every_number_is_read(all_numbers):
    found = torch.zeros(2**16)
    convert[(1,)](all_numbers, found, 2**16)
    assert_same_bits(found, all_numbers.float())


@pytest.mark.parametrize("beyond", [0, 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1])
def test_numbers_between_are_rounded_to_the_nearest(all_numbers, beyond):
    """At the middle between two to the even one; the largest become infinite."""
    between = (all_numbers.float().view(torch.int32) + beyond).view(torch.float32)
    found = torch.zeros(2**16, dtype=torch.bfloat16)
    convert[(1,)](between, found, 2**16)
    assert_same_bits(found, between.bfloat16())


def test_numbers_are_compared(all_numbers):
    found = torch.zeros(2**16, dtype=torch.bool)
    positive[(1,)](all_numbers, found, 2**16)
    assert torch.equal(found, all_numbers > 0)


def test_products_are_exact_and_summed_in_float32():
    """Of whole numbers with sums up to 2**20, of which float32 rounds none and bfloat16 most."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-255, 256, (16, 16), generator=generator).bfloat16() for _ in range(2))
    found = torch.zeros(16, 16)
    multiply[(1,)](a, b, found, 16)
    assert torch.equal(found.double(), a.double() @ b.double() + 1)
