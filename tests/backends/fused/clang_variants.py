"""Clang, and the variants of the kernels that it compiles here, for processors that need not be there."""

import platform
import shutil

import pytest

from deepres.backends.fused.build import PRECISION_FLAGS, UNIT_FLAGS

CLANG = shutil.which("clang++")
needs_clang = pytest.mark.skipif(
    CLANG is None or platform.machine() != "x86_64", reason="there is no clang++ for x86-64"
)
needs_arm_headers = pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None,
    reason="there is no aarch64-linux-gnu-g++, whose headers Clang takes",
)
VARIANTS = [
    ("-march=haswell", "float32", "vectors"),
    ("-march=haswell", "float32", "narrow"),
    ("-march=skylake-avx512", "float32", "vectors"),
    ("-march=cooperlake", "bfloat16", "vectors"),
    ("-march=cooperlake", "bfloat16", "scalar"),
    ("-march=sapphirerapids", "bfloat16", "amx"),
    pytest.param("--target=aarch64-linux-gnu", "float32", "vectors", marks=needs_arm_headers),
]


def clang_command(processor, precision, unit, size):
    """Clang with the flags of a variant; what it is to do and the source are to be added."""
    variant = (processor, *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit], f"-DDEEPRES_SIZE={size}")
    return [CLANG, "-std=c++17", "-fopenmp", *variant]
