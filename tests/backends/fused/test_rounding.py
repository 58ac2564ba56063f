"""Which products are rounded together with a sum is said by the kernels' source, not by the compiler.

By default GCC fuses across statements and Clang within an expression: left to them, results would depend on the
compiler and its version. The source fuses by multiply_add and std::fma, and neither compiler finds anything to add.
"""

import platform
import shutil
import subprocess

import pytest

from deepres.backends.fused.build import FLAGS, PRECISION_FLAGS, SOURCE, UNIT_FLAGS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="there is no compiler for x86-64")

PLANTED = "double fused(double x, double y, double z) { return x * y + z; }\n"
# Just enough for each to fuse: Clang does so in its front end.
STAGES = {"g++": ("-O1", "-fexpensive-optimizations"), "clang++": ("-O0", "-emit-llvm")}
DEFAULTS = {"g++": "-ffp-contract=fast", "clang++": "-ffp-contract=on"}


@pytest.mark.parametrize(
    ("compiler", "processor", "precision", "unit"),
    [
        ("g++", "haswell", "float32", "vectors"),
        ("clang++", "haswell", "float32", "vectors"),
        ("clang++", "cooperlake", "bfloat16", "scalar"),
    ],
)
def test_compilers_find_no_product_to_fuse(compiler, processor, precision, unit):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    flags = ("-std=c++17", "-fopenmp", "-w", "-DDEEPRES_SIZE=24", f"-march={processor}")
    flags = (*flags, *STAGES[compiler], *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit])

    def compiled(source: str, contraction: str) -> str:
        command = [compiler, *flags, contraction, "-S", "-o", "-", "-x", "c++", "-"]
        return subprocess.run(command, input=source, check=True, capture_output=True, text=True).stdout

    kernels = f'#include "{SOURCE}"\n'
    assert compiled(PLANTED, DEFAULTS[compiler]) != compiled(PLANTED, "-ffp-contract=off")
    assert compiled(kernels, DEFAULTS[compiler]) == compiled(kernels, "-ffp-contract=off")


def test_nothing_else_would_be_fused():
    assert "-ffp-contract=off" in FLAGS
