"""What the machine has: device, precision, compiler."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from platformdirs import user_cache_path

from deepres.errors import UserError, unknown_name
from deepres.machine import num_cores

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")


def check_device(name: str) -> None:
    """Raise the error for an unknown device."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)


def resolve_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device; auto is a GPU if torch sees one.

    On the way the process is given no more threads than it has cores, see `limit_threads`.

    Raises:
        UserError: an unknown name, or "cuda" where torch sees no GPU.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': torch sees no GPU here: use --device cpu, or install a CUDA build of torch")
    limit_threads()
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32, on a GPU too
    return torch.device(name)


def limit_threads() -> None:
    """Give torch no more threads than the container or batch job has cores, unless OMP_NUM_THREADS says how many.

    Torch counts those of the whole machine, and threads that share a core wait for each other at every layer.
    """
    if "OMP_NUM_THREADS" not in os.environ and (cores := num_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into "bfloat16" where the hardware computes in it natively, else "float32".

    Raises:
        UserError: an unknown name.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def has_native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices in hardware: AVX-512 BF16, AMX, or Ampere and later."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the net computes; parameters stay float32 in either precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile needs, or None."""
    candidates = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with torch.compile; compiled kernels are kept in the user's cache, where they survive a reboot."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("deepres") / "compiled"))
    return torch.compile(function, dynamic=False)


def describe_device(device: torch.device) -> str:
    """Return the name of the chip."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = torch.cpu.get_capabilities()
    threads = torch.get_num_threads()
    return f"{capabilities.get('cpu_name', 'CPU')}, {threads} thread{'s' if threads > 1 else ''}"
