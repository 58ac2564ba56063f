"""The kernels without a GPU: what is in `*_in_interpreter.py` runs in Triton's interpreter, on the CPU.

Triton reads TRITON_INTERPRET when kernels are defined, so these tests run in processes of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize(
    "modules", ["bfloat16 convolution normalization", pytest.param("net", marks=pytest.mark.long)]
)
def test_in_the_interpreter(modules):
    paths = [Path(__file__).parent / f"{module}_in_interpreter.py" for module in modules.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
