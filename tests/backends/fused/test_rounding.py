"""Which products are rounded together with a sum is said by the kernels' source, not by the compiler.

By default GCC fuses across statements and Clang within an expression: left to them, results would depend on the
compiler and its version. The source fuses by multiply_add and std::fma, and Clang finds nothing to add. GCC would say
so in machine code alone, after a minute.
"""

import subprocess

import pytest
from clang_variants import VARIANTS, clang_command, needs_clang

from deepres.backends.fused.build import FLAGS, SOURCE

PLANTED = "double fused(double x, double y, double z) { return x * y + z; }\n"


@needs_clang
@pytest.mark.parametrize(("processor", "precision", "unit"), VARIANTS)
def test_clang_finds_no_product_to_fuse(processor, precision, unit):
    command = [*clang_command(processor, precision, unit, size=24), "-w", "-O0", "-emit-llvm", "-S", "-o", "-"]

    def compiled(source: str, contraction: str) -> str:  # it fuses in its front end
        reading = [*command, contraction, "-x", "c++", "-"]
        return subprocess.run(reading, input=source, check=True, capture_output=True, text=True).stdout

    kernels = f'#include "{SOURCE}"\n'
    assert compiled(PLANTED, "-ffp-contract=on") != compiled(PLANTED, "-ffp-contract=off")
    assert compiled(kernels, "-ffp-contract=on") == compiled(kernels, "-ffp-contract=off")


def test_nothing_else_would_be_fused():
    assert "-ffp-contract=off" in FLAGS
