"""Compiles the kernels with Clang, whose warnings and optimizer differ from GCC's."""

import platform
import shutil
import subprocess

import pytest

from deepres.backends.fused.build import PRECISION_FLAGS, SIZES, SOURCE, UNIT_FLAGS

CLANG = shutil.which("clang++")
pytestmark = pytest.mark.skipif(
    CLANG is None or platform.machine() != "x86_64", reason="there is no clang++ for x86-64"
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("processor", "precision", "unit"),
    [
        ("haswell", "float32", "vectors"),
        ("haswell", "float32", "narrow"),
        ("skylake-avx512", "float32", "vectors"),
        ("cooperlake", "bfloat16", "vectors"),
        ("cooperlake", "bfloat16", "scalar"),
        ("sapphirerapids", "bfloat16", "amx"),
    ],
)
def test_clang_has_no_warnings(processor, precision, unit, size):
    variant = (*PRECISION_FLAGS[precision], *UNIT_FLAGS[unit], f"-DDEEPRES_SIZE={size}", f"-march={processor}")
    command = [CLANG, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-fopenmp", *variant, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
