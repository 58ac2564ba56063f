"""What the machine has: device, precision, compiler."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from platformdirs import user_cache_path

from deepres.backends.machine import num_cores
from deepres.errors import UserError, unknown_name

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")
FIRST_BFLOAT16 = (8, 0)  # compute capability of the first GPUs that multiply bfloat16 matrices: Ampere


def check_device(name: str) -> None:
    """Raise the error for an unknown device."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)


def resolve_device(name: str, notice: Callable[[str], None] = lambda _: None) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device; auto is a GPU if this torch can use one.

    On the way the process is given no more threads than it has cores, see `limit_threads`.

    Args:
        name: "auto", "cpu" or "cuda".
        notice: is given a line where "auto" leaves a GPU alone.

    Raises:
        UserError: an unknown name, or "cuda" where torch sees no GPU or has no kernels for it.
    """
    check_device(name)
    reason = "torch sees no GPU here"
    if torch.cuda.is_available():
        reason = why_no_gpu(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()) or ""
        if reason and name == "auto":
            notice(f"{reason}: the CPU computes; install a build of torch for this GPU to use it")
    if reason and name == "cuda":
        raise UserError(f"device 'cuda': {reason}: use --device cpu, or install another CUDA build of torch")
    limit_threads()
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32, on a GPU too
    return torch.device("cuda" if not reason and name != "cpu" else "cpu")


def why_no_gpu(capability: tuple[int, int], architectures: Sequence[str]) -> str | None:
    """Return why a build of torch does not run on a GPU, or None.

    Binary code ("sm_86") runs on GPUs of the same major and at least the minor number, code for one architecture alone
    ("sm_90a") on that one; "compute_90" is compiled for any later GPU when it is loaded.

    Args:
        capability: the GPU's, as `torch.cuda.get_device_capability` has it.
        architectures: what the build is for, as `torch.cuda.get_arch_list` has it. AMD's are not judged.
    """
    known = [match for name in architectures if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    for kind, major, minor, suffix in (match.groups() for match in known):
        built_for = int(major), int(minor)
        if suffix == "a":
            covered = capability == built_for
        elif kind == "sm":
            covered = capability[0] == built_for[0] and capability >= built_for
        else:
            covered = capability >= built_for
        if covered:
            return None
    if not known:
        return None
    return f"this build of torch has no kernels for a GPU of compute capability {capability[0]}.{capability[1]}"


def limit_threads() -> None:
    """Give torch no more threads than the container or batch job has cores, unless OMP_NUM_THREADS says how many.

    Torch counts those of the whole machine, and threads that share a core wait for each other at every layer.
    """
    if "OMP_NUM_THREADS" not in os.environ and (cores := num_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)


def check_precision(name: str, device: torch.device) -> None:
    """Raise the error for an unknown precision, or one that the device does not compute in."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name == "bfloat16" and device.type == "cuda" and not has_native_bfloat16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise UserError(
            f"precision 'bfloat16' needs a GPU of compute capability 8.0, this one has {major}.{minor}: "
            "use --precision float32"
        )


def native_precisions(device: torch.device) -> list[str]:
    """Return the precisions that "auto" chooses among: float32, and bfloat16 where the hardware computes in it."""
    return ["float32", "bfloat16"] if has_native_bfloat16(device) else ["float32"]


def has_native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices in hardware: AVX-512 BF16, AMX, or Ampere and later."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_BFLOAT16
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
