"""Memory in huge pages: its tensors are apart, aligned and zero, and the system was asked for huge pages."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from deepres.backends.fused.pages import BLOCK, CACHE_LINE, HUGE_PAGE, HugePages


def test_tensors_are_zero_aligned_and_apart():
    pages = HugePages()
    shapes = [(3,), (1,), (128, 32, 32, 16), (BLOCK // 4 + 5,), (0, 4), (7, 64)]
    tensors = [pages.zeros(*shape, dtype=torch.float32) for shape in shapes]
    for tensor, shape in zip(tensors, shapes, strict=True):
        assert tensor.shape == shape
        assert not tensor.any()
        assert tensor.data_ptr() % CACHE_LINE == 0
    for i, tensor in enumerate(tensors):
        tensor.fill_(i + 1)
    for i, tensor in enumerate(tensors):
        assert (tensor == i + 1).all()


def test_tensors_outlive_what_handed_them_out():
    tensor = HugePages().zeros(1000, dtype=torch.bfloat16)
    tensor.fill_(2)
    for _ in range(3):
        HugePages().zeros(1000, dtype=torch.bfloat16).fill_(5)
    assert (tensor == 2).all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for")
def test_the_system_is_asked_for_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("the kernel was built without huge pages")
    tensor = HugePages().zeros(10, dtype=torch.float32)
    address = tensor.data_ptr()
    assert address % HUGE_PAGE == 0
    advised = False
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if borders := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(borders[1], 16) <= address < int(borders[2], 16)
        elif within and line.startswith("VmFlags:"):
            advised = "hg" in line.split()
    assert advised
