"""Which products are rounded together with a sum is said by the kernels' source, not by the compiler.

By default GCC fuses across statements and Clang within an expression: left to them, results would depend on the
compiler and its version. The source fuses by multiply_add and std::fma, and Clang finds nothing to add. GCC would say
so in machine code alone, after a minute.
"""

import platform
import shutil
import subprocess

import pytest

from deepres.backends.fused.build import FLAGS, PRECISION_FLAGS, SOURCE, UNIT_FLAGS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="there is no compiler for x86-64")

PLANTED = "double fused(double x, double y, double z) { return x * y + z; }\n"


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++")
@pytest.mark.parametrize(
    ("processor", "precision", "unit"), [("haswell", "float32", "vectors"), ("cooperlake", "bfloat16", "scalar")]
)
def test_clang_finds_no_product_to_fuse(processor, precision, unit):
    flags = ("-std=c++17", "-fopenmp", "-w", "-DDEEPRES_SIZE=24", f"-march={processor}")
    flags = (*flags, *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit])

    def compiled(source: str, contraction: str) -> str:  # it fuses in its front end
        command = ["clang++", *flags, contraction, "-O0", "-emit-llvm", "-S", "-o", "-", "-x", "c++", "-"]
        return subprocess.run(command, input=source, check=True, capture_output=True, text=True).stdout

    kernels = f'#include "{SOURCE}"\n'
    assert compiled(PLANTED, "-ffp-contract=on") != compiled(PLANTED, "-ffp-contract=off")
    assert compiled(kernels, "-ffp-contract=on") == compiled(kernels, "-ffp-contract=off")


def test_nothing_else_would_be_fused():
    assert "-ffp-contract=off" in FLAGS
