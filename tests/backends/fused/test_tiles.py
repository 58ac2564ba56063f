"""What happens on processors with AMX where the operating system withholds its tiles."""

import pytest
import torch

from deepres.backends import build as backends
from deepres.backends.fused import build as kernels
from deepres.backends.fused.build import CAPABILITIES, KernelsUnavailable, load_kernels, why_tiles_are_denied
from deepres.models import build_model

CPU = torch.device("cpu")
DENIAL = "the operating system denies AMX's tiles (Operation not permitted)"


@pytest.fixture
def processor(monkeypatch):
    """Gives the processor AMX, or not, and the operating system's answer."""

    def set_processor(has_tiles: bool, answer: str | None) -> None:
        names = (*CAPABILITIES["bfloat16"][0], *(kernels.AMX if has_tiles else ()))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
        monkeypatch.setattr(kernels, "_request_tiles", lambda: answer)
        monkeypatch.setattr(kernels.sys, "platform", "linux")

    return set_processor


@pytest.mark.parametrize(
    ("has_tiles", "answer", "denial"), [(True, DENIAL, DENIAL), (True, None, None), (False, DENIAL, None)]
)
def test_withheld_tiles_are_mentioned_once(has_tiles, answer, denial, processor, monkeypatch):
    processor(has_tiles, answer)
    assert why_tiles_are_denied() == denial
    monkeypatch.setattr(backends, "why_not_fused", lambda *_: None)
    monkeypatch.setattr(backends, "FusedNet", lambda *_: "the kernels")
    for precision in ("float32", "bfloat16"):
        lines = []
        found = backends.build_backend("fused", build_model("resnet20"), CPU, precision, 4, lines.append)
        assert found == "the kernels"
        expected = f"no matrix tiles ({denial}): the fused kernels use vectors, slower"
        assert lines == ([expected] if denial and precision == "bfloat16" else [])


@pytest.mark.parametrize(("answer", "flags"), [(DENIAL, []), (None, ["-DDEEPRES_TILES=1"])])
def test_kernels_without_tiles_are_compiled_where_they_are_withheld(answer, flags, processor, monkeypatch):
    processor(True, answer)
    commands = []

    def build(command, name):
        commands.append(command)
        raise KernelsUnavailable("not compiled")

    monkeypatch.setattr(kernels, "find_compiler", lambda: "g++")
    monkeypatch.setattr(kernels, "_run", lambda command: "1.0")
    monkeypatch.setattr(kernels, "_find_or_build", build)
    with pytest.raises(KernelsUnavailable, match="not compiled"):
        load_kernels("bfloat16")
    assert [[flag for flag in command if "TILES" in flag] for command in commands] == [flags]
