"""The kernels' machine code, which takes no GPU to make: nothing spills, and the tensor cores multiply."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from deepres.models import build_model

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from deepres.backends.fused_cuda.launch import NUM_STAGES, NUM_WARPS, Launch  # noqa: E402
from deepres.backends.fused_cuda.net import FusedCudaNet  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
ALIGNED = [["tt.divisibility", 16]]  # what Triton finds out of arguments when it starts a kernel
SHARED_BYTES = 99 * 1024  # of a program, at most, on GPUs for consumers
MOST_REGISTERS = 255  # of a thread: more are spilled


def launches(name):
    """Every kernel that steps and evaluations of a net start, which names no kernel twice if it is the same code."""
    num_images = 4
    net = FusedCudaNet(build_model(name), "bfloat16", num_images)
    passes = net._passes_for(torch.zeros(num_images, 3, 32, 32))
    calls = [call for training in (True, False) for call in passes.plan_forward(num_images, training=training)]
    return [call for call in calls + passes.plan_backward(num_images) if isinstance(call, Launch)]


def source(launch):
    """What Triton compiles for a launch."""
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if value is None or name.isupper():
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = POINTERS[value.dtype], ALIGNED
        elif isinstance(value, int):
            signature[name], attributes[(i,)] = "i32", ALIGNED if value % 16 == 0 else []
        else:
            signature[name] = "fp32"
    return ASTSource(launch.kernel, signature, constants, attributes)


@pytest.fixture(scope="module")
def sources():
    """Of a residual net and a plain one, of which each has kernels that the other has not."""
    found = [source(launch) for name in ("resnet14", "plain14") for launch in launches(name)]
    return list({each.hash(): each for each in found}.values())


def resources(kernel, folder):
    """A thread's registers and bytes of local memory, where spilled ones lie, as NVIDIA's tool has them."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [CUOBJDUMP, "--dump-resource-usage", binary]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local)


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit_into_registers_and_shared_memory(capability, sources, tmp_path):
    assert {each.fn.__name__ for each in sources} >= {"conv3x3_forward", "batch_statistics", "residual_sum"}
    assert len(sources) > 40
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
    for each in sources:
        kernel = triton.compile(each, target=target, options=options)
        what = f"{each.fn.__name__} {each.constants}"
        registers, spilled = resources(kernel, tmp_path)
        assert spilled == 0, what
        assert registers <= MOST_REGISTERS, what
        assert kernel.metadata.shared <= SHARED_BYTES, what
        if each.fn.__name__.startswith("conv3x3"):
            assert "mma" in kernel.asm["ptx"], what
