"""Compiles the kernels with Clang, whose warnings and optimizer differ from GCC's."""

import platform
import shutil
import subprocess

import pytest

from deepres.backends.fused.build import PRECISION_FLAGS, SIZES, SOURCE, TILES_FLAGS

CLANG = shutil.which("clang++")
pytestmark = pytest.mark.skipif(
    CLANG is None or platform.machine() != "x86_64", reason="there is no clang++ for x86-64"
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("processor", "precision", "tiles"),
    [
        ("haswell", "float32", "none"),
        ("skylake-avx512", "float32", "none"),
        ("cooperlake", "bfloat16", "none"),
        ("cooperlake", "bfloat16", "scalar"),
        ("sapphirerapids", "bfloat16", "amx"),
    ],
)
def test_clang_has_no_warnings(processor, precision, tiles, size):
    variant = (*PRECISION_FLAGS[precision], *TILES_FLAGS[tiles], f"-DDEEPRES_SIZE={size}", f"-march={processor}")
    command = [CLANG, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-fopenmp", *variant, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
