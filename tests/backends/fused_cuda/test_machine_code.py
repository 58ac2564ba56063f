"""The kernels' machine code, which takes no GPU to make: nothing spills, and the tensor cores multiply."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from deepres.models import build_model

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# Compute capabilities with the rows of the images: A100, RTX 30, RTX 40, H100, B200, RTX 50. For A100 and H100 all
# kernels of a residual net and a plain one, for the others the convolutions of a residual net, which need the most.
ALL, CONVOLUTIONS = ("resnet14", "plain14"), ("resnet14",)
GPUS = [
    (80, (32, 24), ALL),
    (86, (32,), CONVOLUTIONS),
    (89, (32,), CONVOLUTIONS),
    (90, (32,), ALL),
    (100, (32,), CONVOLUTIONS),
    (120, (32,), CONVOLUTIONS),
]
SHARED_BYTES = 99 * 1024  # of a program, at most, on GPUs for consumers; on A100, H100 and B200 there are more
TENSOR_MEMORY_COLUMNS = 512  # of B200, where the others sum products in registers
# Of a thread. For RTX 50 the assembler, as Triton calls it, puts two of a convolution's 96 registers aside, once.
SPILLED_BYTES = {120: 8}


@pytest.fixture
def gpu_to_compile_for(request):
    """Lets Triton take this machine for one with an NVIDIA GPU of a compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", request.param, 32)

        def get_current_device(self):
            return request.param  # a number by which Triton keeps apart what it has compiled

        def get_current_stream(self, device):
            return 0

    driver.set_active(Driver())
    yield request.param
    driver.set_active(None)


def launches(sizes, names):
    """Every kernel that steps of nets start: a residual net and a plain one have some of their own."""
    from deepres.backends.fused_cuda.launch import Launch
    from deepres.backends.fused_cuda.net import FusedCudaNet

    num_images = 4
    for name in names:
        net = FusedCudaNet(build_model(name), "bfloat16", num_images)
        for size in sizes:
            passes = net._passes_for(torch.zeros(num_images, 3, size, size))
            calls = [*passes.plan_forward(num_images, training=True), *passes.plan_backward(num_images)]
            yield from (call for call in calls if isinstance(call, Launch))


def resources(kernel, folder):
    """A thread's registers and bytes of local memory, where spilled ones lie, as NVIDIA's tool has them."""
    import triton

    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "--dump-resource-usage", binary]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local)


@pytest.mark.parametrize(("gpu_to_compile_for", "sizes", "names"), GPUS, indirect=["gpu_to_compile_for"])
def test_kernels_fit_into_registers_and_shared_memory(gpu_to_compile_for, sizes, names, tmp_path):
    compiled = {}
    for launch in launches(sizes, names):
        if names == CONVOLUTIONS and not launch.kernel.__name__.startswith("conv3x3"):
            continue
        kernel = launch.compile()
        assert kernel.metadata.target.arch == gpu_to_compile_for
        compiled[kernel.hash] = launch, kernel
    assert len(compiled) > (30 if names == ALL else 15) * len(sizes)
    for launch, kernel in compiled.values():
        what = f"{launch.kernel.__name__} {launch.arguments}"
        registers, spilled = resources(kernel, tmp_path)
        assert spilled <= SPILLED_BYTES.get(gpu_to_compile_for, 0), what
        assert 0 < registers <= 255, what
        assert kernel.metadata.shared <= SHARED_BYTES, what
        assert kernel.metadata.tmem_size <= TENSOR_MEMORY_COLUMNS, what
        assert ("mma" in kernel.asm["ptx"]) == launch.kernel.__name__.startswith("conv3x3"), what
