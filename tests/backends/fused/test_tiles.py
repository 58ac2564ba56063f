"""What happens on processors with AMX where the operating system withholds its tiles."""

import ctypes
import errno
import sys

import pytest
import torch
from fake_compiler import make_compiler

from deepres.backends.build import without_tiles
from deepres.backends.fused.build import AMX, CAPABILITIES, KernelsUnavailable, load_kernels, why_tiles_are_denied

DENIAL = "the operating system denies AMX's tiles (Operation not permitted)"


@pytest.fixture
def processor(monkeypatch):
    """Gives the processor AMX, or not, and the operating system's answer."""

    def set_processor(has_tiles: bool, granted: bool) -> None:
        names = (*CAPABILITIES["bfloat16"][0], *(AMX if has_tiles else ()))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))

        class System:
            def __init__(self, name: None, use_errno: bool) -> None:
                pass

            def syscall(self, *arguments: int) -> int:
                ctypes.set_errno(0 if granted else errno.EPERM)
                return 0 if granted else -1

        monkeypatch.setattr(ctypes, "CDLL", System)
        monkeypatch.setattr(sys, "platform", "linux")

    return set_processor


@pytest.mark.parametrize(
    ("has_tiles", "granted", "denial"), [(True, False, DENIAL), (True, True, None), (False, False, None)]
)
def test_withheld_tiles_are_mentioned_where_they_would_be_used(has_tiles, granted, denial, processor):
    processor(has_tiles, granted)
    assert why_tiles_are_denied() == denial
    assert without_tiles("float32") is None
    expected = f"no matrix tiles ({denial}): the fused kernels use vectors, slower"
    assert without_tiles("bfloat16") == (expected if denial else None)


@pytest.mark.parametrize(("granted", "flags"), [(False, []), (True, ["-DDEEPRES_TILES=1"])])
def test_kernels_without_tiles_are_compiled_where_they_are_withheld(granted, flags, processor, tmp_path, monkeypatch):
    make_compiler(tmp_path / "cc", monkeypatch, f'echo "$@" > {tmp_path}/arguments; exit 1')
    processor(True, granted)
    with pytest.raises(KernelsUnavailable, match="cc failed: exit code 1"):
        load_kernels("bfloat16")
    arguments = (tmp_path / "arguments").read_text().split()
    assert [flag for flag in arguments if "TILES" in flag] == flags
