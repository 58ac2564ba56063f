"""Which products are rounded together with a sum is said by the kernels' source, not by the compiler.

By default GCC fuses across statements and Clang within an expression: left to them, results would depend on the compiler
and its version. The source fuses by multiply_add and std::fma, and neither compiler finds anything to add.
"""

import platform
import shutil
import subprocess

import pytest

from deepres.backends.fused.build import FLAGS, PRECISION_FLAGS, SOURCE, UNIT_FLAGS

GCC, CLANG = shutil.which("g++"), shutil.which("clang++")
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="there is no compiler for x86-64")


def machine_code(compiler: str, contraction: str, *flags: str, source: str = "") -> str:
    """The assembly that the compiler writes, optimized as far as it fuses."""
    options = ("-std=c++17", "-O2", "-fopenmp", f"-ffp-contract={contraction}", "-w", *flags)
    command = [compiler, *options, "-S", "-o", "-", "-x", "c++", "-"]
    text = source or f'#include "{SOURCE}"\n'
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("compiler", "contraction"),
    [
        pytest.param(GCC, "fast", marks=pytest.mark.skipif(GCC is None, reason="there is no g++")),
        pytest.param(CLANG, "on", marks=pytest.mark.skipif(CLANG is None, reason="there is no clang++")),
    ],
)
@pytest.mark.parametrize(
    ("processor", "precision", "unit"),
    [("haswell", "float32", "vectors"), ("cooperlake", "bfloat16", "scalar")],
)
def test_compilers_find_no_product_to_fuse(compiler, contraction, processor, precision, unit):
    planted = "double fused(double x, double y, double z) { return x * y + z; }\n"
    flags = (f"-march={processor}", *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit], "-DDEEPRES_SIZE=24")
    assert machine_code(compiler, contraction, *flags, source=planted) != machine_code(
        compiler, "off", *flags, source=planted
    )
    assert machine_code(compiler, contraction, *flags) == machine_code(compiler, "off", *flags)


def test_the_kernels_are_compiled_so_that_nothing_else_is_fused():
    assert "-ffp-contract=off" in FLAGS
