"""Runs the kernels for 64-bit ARM in an emulator: they make the very bits that 128-bit vectors make on x86-64.

That those are right is tested against autograd: here a whole net, and layers as the variant "narrow" of
fused_variants.py.
"""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from fused_variants import ON_X86, batch, make_model, needs_float32

from deepres.backends.device import find_compiler
from deepres.backends.fused.agreement import NUM_IMAGES, disagreement
from deepres.backends.fused.build import PRECISION_FLAGS, SOURCE, UNIT_FLAGS
from deepres.backends.fused.net import FusedNet

pytestmark = [needs_float32, pytest.mark.skipif(not ON_X86, reason="compares with 128-bit vectors on x86-64")]

PROGRAM = Path(__file__).with_name("run_kernels.cpp")
# Of this size tiles are cut at the edges.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fopenmp", *PRECISION_FLAGS["float32"], "-DDEEPRES_SIZE=24", "-w")
CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def results(compiler: str, flags: tuple[str, ...], program: Path, *emulator: str) -> str:
    """A digest of the bits of every result of every kernel."""
    subprocess.run([compiler, *FLAGS, *flags, f"-I{SOURCE.parent}", str(PROGRAM), "-o", str(program)], check=True)
    return subprocess.run([*emulator, str(program), "9", "17"], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(CROSS_COMPILER is None, reason="there is no aarch64-linux-gnu-g++")
@pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-aarch64")
def test_arm_makes_the_bits_of_128_bit_vectors(tmp_path):
    emulated = results(CROSS_COMPILER, ("-O3", "-static"), tmp_path / "arm", EMULATOR)
    native = results(find_compiler(), ("-O1", "-march=native", *UNIT_FLAGS["narrow"]), tmp_path / "native")
    assert "layer of 64 and 64 channels" in native
    assert emulated == native


def test_a_net_computed_in_128_bit_vectors_agrees_with_autograd():
    narrow = partial(FusedNet, unit="narrow")
    assert disagreement(make_model("resnet20"), "float32", [batch(NUM_IMAGES)], narrow) is None
