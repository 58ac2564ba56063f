"""Runs every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, see run_kernels.cpp."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from deepres.backends.device import find_compiler
from deepres.backends.fused.build import CAPABILITIES, NATIVE, PRECISION_FLAGS, SIZES, SOURCE, UNIT_FLAGS

PROGRAM = Path(__file__).with_name("run_kernels.cpp")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Not optimized, which takes a third of the time to compile, and leaves nothing out that could be noticed.
FLAGS = ("-std=c++17", "-O0", "-g1", NATIVE, "-DDEEPRES_SANITIZED", "-w", f"-I{SOURCE.parent}")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    found = find_compiler()
    if found is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("trial")
    (folder / "trial.cpp").write_text("#include <sanitizer/asan_interface.h>\nint main() {}\n")
    done = subprocess.run([found, *SANITIZERS, str(folder / "trial.cpp"), "-o", str(folder / "trial")])
    if done.returncode != 0 or subprocess.run([str(folder / "trial")]).returncode != 0:
        pytest.skip("the compiler has no sanitizers that work here")
    return found


def run(program, *arguments):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, env=environment)


# Chunks of no, one and two images (the slow twin computes one image); of the last stage more, of which the tiles take
# several at once.
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("precision", "unit", "num_images", "num_last"),
    [("float32", "vectors", 9, 17), ("bfloat16", "vectors", 9, 17), ("bfloat16", "scalar", 1, 9)],
)
def test_no_kernel_leaves_its_memory(compiler, precision, unit, size, num_images, num_last, tmp_path):
    capabilities = torch.cpu.get_capabilities()
    if not any(all(capabilities.get(name) for name in needed) for needed in CAPABILITIES[precision]):
        pytest.skip(f"the processor has no instructions for {precision}")
    flags = (*FLAGS, *SANITIZERS, *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit], f"-DDEEPRES_SIZE={size}")
    program = tmp_path / "run_kernels"
    subprocess.run([compiler, *flags, str(PROGRAM), "-o", str(program)], check=True)
    done = run(program, num_images, num_last)
    assert done.returncode == 0, done.stderr
    planted = run(program)
    assert planted.returncode != 0
    assert "heap-buffer-overflow" in planted.stderr
