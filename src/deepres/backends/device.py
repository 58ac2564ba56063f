"""What the machine has: device, precision, compiler."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from platformdirs import user_cache_path

from deepres.backends.accelerator import Accelerator
from deepres.backends.machine import num_cores
from deepres.errors import UserError, first_line, unknown_name

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
COMPILED_VARIANTS = 64  # nets x sizes in one process; beyond its own limit of 8 torch takes plain steps, silently
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def check_device(name: str) -> None:
    """Raise the error for an unknown device."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)


def resolve_device(name: str, notice: Callable[[str], None] = lambda _: None, *, prove: bool = True) -> torch.device:
    """Turn a name of `DEVICES` into a device; auto is an NVIDIA or AMD GPU if this torch can use it, else the CPU.

    On the way the process is given no more threads than it has cores, see `limit_threads`, and the device's rounding
    is fixed, see `fix_rounding`.

    Args:
        name: "auto", "cpu", "cuda" (AMD's GPUs too), "mps" or "xpu".
        notice: is given a line where "auto" leaves a GPU alone.
        prove: whether the device has to compute something; that takes memory on it, which a program that only starts
            others does not need.

    Raises:
        UserError: an unknown name, or torch does not see such a device, or has no kernels for it.
    """
    check_device(name)
    limit_threads()
    fix_rounding()
    kind = "cuda" if name == "auto" else name
    if kind == "cpu":
        return torch.device("cpu")
    device, seen = torch.device(kind), sees(kind)
    reason = (why_unusable(device, prove) or "") if seen else f"torch sees no {DEVICE_NAMES[kind]} here"
    if not reason:
        return device
    if name != "auto":
        raise UserError(f"device {name!r}: {reason}: use --device cpu, or install a build of torch for it")
    if seen:
        notice(f"{reason}: the CPU computes; install a build of torch for this GPU to use it")
    elif other := next((other for other in ("mps", "xpu") if sees(other)), None):
        notice(f"the CPU computes: deepres is not tested on {DEVICE_NAMES[other]}s; --device {other} uses this one")
    return torch.device("cpu")


DEVICE_NAMES = {"cuda": "GPU", "mps": "Apple GPU", "xpu": "Intel GPU"}


def sees(kind: str) -> bool:
    """Tell whether torch sees a device of a kind: "cuda", "mps" or "xpu"."""
    if kind == "cuda":
        return torch.cuda.is_available()
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type == kind


def why_unusable(device: torch.device, prove: bool) -> str | None:
    """Return why this build of torch cannot use a device that it sees, or None.

    A build may lack kernels of which its list of architectures says nothing, so that a first sum is the proof.
    """
    if reason := Accelerator.of(device).why_no_kernels:
        return reason
    if prove and (failure := first_failure(device)):
        return f"{describe_device(device)} does not compute ({failure})"
    return None


def first_failure(device: torch.device) -> str | None:
    """Add two numbers on a device; return what goes wrong, or None."""
    try:
        total = torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        return first_line(error)
    return None if total == 2 else f"1 + 1 = {total:g}"


def fix_rounding() -> None:
    """Let a GPU compute float32 in float32, and by algorithms that give the same bits each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which algorithm is fastest may turn out otherwise next time


def replays_graphs(device: torch.device) -> bool:
    """Tell whether steps on a device are recorded as graphs."""
    return device.type != "cpu" and Accelerator.of(device).replays


def resumes_exactly(device: torch.device, backend: str) -> bool:
    """Tell whether a run that is resumed ends with the bits of one that never stopped.

    By torch.compile it need not on a GPU: what is compiled anew may add up in another order.
    """
    return device.type == "cpu" or (backend in ("eager", "fused") and Accelerator.of(device).repeats)


def limit_threads(cores: int | None = None) -> None:
    """Give torch no more threads than there are cores, unless OMP_NUM_THREADS says how many.

    Torch counts the cores of the whole machine, and threads that share one wait for each other at every layer.

    Args:
        cores: how many there are; None: those of the container or batch job.
    """
    if "OMP_NUM_THREADS" not in os.environ and (limit := cores or num_cores()) < torch.get_num_threads():
        torch.set_num_threads(limit)


def check_precision(name: str, device: torch.device | None = None) -> None:
    """Raise the error for an unknown precision, or one that the device, if it is known, does not compute in."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name in ("auto", "float32") or device is None:
        return
    if device.type == "cpu":
        if name == "float16":  # bfloat16 is allowed on every CPU: slow is no error
            raise UserError("precision 'float16' is for GPUs: on a CPU use --precision float32 or bfloat16")
        return
    accelerator = Accelerator.of(device)
    if name not in accelerator.precisions:
        others = " or ".join(accelerator.precisions)
        raise UserError(f"precision {name!r} does not suit {accelerator}: use --precision {others}")


def native_precisions(device: torch.device) -> list[str]:
    """Return the precisions that "auto" chooses among: float32, and narrower ones if the hardware computes in them."""
    if device.type != "cpu":
        return Accelerator.of(device).precisions
    return ["float32", "bfloat16"] if has_native_bfloat16(device) else ["float32"]


def has_native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices in hardware: a CPU by AVX-512 BF16 or AMX."""
    if device.type != "cpu":
        return "bfloat16" in Accelerator.of(device).precisions
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the net computes; parameters stay float32 in every precision."""
    narrow = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=narrow, enabled=precision != "float32")


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile needs, or None."""
    candidates = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with torch.compile; compiled kernels are kept in the user's cache, where they survive a reboot."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("deepres") / "compiled"))
    # By itself each process of a grid would start a compiler for every core of the machine.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(torch.get_num_threads()))
    compiled = torch.compile(function, dynamic=False)
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    return compiled


def describe_device(device: torch.device) -> str:
    """Return the name of the chip."""
    if device.type != "cpu":
        return Accelerator.of(device).name
    capabilities = torch.cpu.get_capabilities()
    threads = torch.get_num_threads()
    return f"{capabilities.get('cpu_name', 'CPU')}, {threads} thread{'s' if threads > 1 else ''}"
