"""Compiles the kernels with Clang, whose warnings and optimizer differ from GCC's."""

import subprocess

import pytest
from clang_variants import VARIANTS, clang_command, needs_clang

from deepres.backends.fused.build import SIZES, SOURCE

pytestmark = needs_clang


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("processor", "precision", "unit"), VARIANTS)
def test_clang_has_no_warnings(processor, precision, unit, size):
    command = clang_command(processor, precision, unit, size)
    command += ["-fsyntax-only", "-Wall", "-Wextra", "-Werror", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
