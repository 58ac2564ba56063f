"""Compiles kernels.cpp and the headers beside it on first use, keeps the kernels in the user's cache, and loads them.

The kernels run on the OpenMP threads of the process. Torch's libgomp is loaded before and has the name that the
compiled kernels ask for, so both share one pool of threads; where torch brings a runtime of another name there are
two pools, of which one sleeps while the other works. Every kernel is given the number of threads.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from platformdirs import user_cache_path

from deepres.backends.device import find_compiler
from deepres.errors import UserError

SOURCE = Path(__file__).parent / "kernels" / "kernels.cpp"
# Compilers for ARM take the processor's name, with its instructions, from -mcpu; Apple's knows no other option.
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
# Compilers differ in which products they fuse with a sum, unless they are to fuse none but those of the source.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", NATIVE, "-shared", "-fPIC")
SIZES = (16, 24, 32)  # rows and columns of images
PRECISION_FLAGS = {"float32": ("-DDEEPRES_FLOAT32",), "bfloat16": ()}
UNIT_FLAGS = {
    "vectors": (),
    "narrow": ("-DDEEPRES_LANES=4",),
    "amx": ("-DDEEPRES_TILES=1",),
    "scalar": ("-DDEEPRES_TILES=2",),
}
# What the processor must have, as torch.cpu.get_capabilities names it: all of one of these.
AVX2 = ("avx2", "fma3")
AVX512 = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq")
NEON = ("neon",)  # which every 64-bit ARM has
CAPABILITIES = {"float32": (AVX2, AVX512, NEON), "bfloat16": ((*AVX512, "avx512_bf16"),)}
AMX = ("amx_tile", "amx_bf16")
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # Linux on x86-64, for the state of AMX's tiles


class KernelsUnavailable(Exception):  # noqa: N818 (it is no error: training continues without the kernels)
    """The kernels are not available; the message is one line that says why."""


def kernels_error(reason: str) -> UserError:
    """Return the error for kernels that were asked for and are not available."""
    return UserError(f"the fused kernels do not work here ({reason}): give --backend compiled or eager")


class Input(ctypes.Structure):
    """`Input` of layer.h, where the fields are explained."""

    _fields_ = (
        ("previous", c_void_p),
        ("shortcut", c_void_p),
        ("shortcut_channels", c_int64),
        ("values", c_void_p),
    )


class Layer(ctypes.Structure):
    """`Layer` of layer.h, where the fields are explained."""

    _fields_ = (
        ("in_channels", c_int64),
        ("out_channels", c_int64),
        ("descending", c_int64),
        ("input", Input),
        ("output", c_void_p),
        ("forward_weight", c_void_p),
        ("backward_weight", c_void_p),
        ("sums", c_void_p),
        ("weight", c_void_p),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
        ("weight_grad", c_void_p),
        ("norm_weight_grad", c_void_p),
        ("norm_bias_grad", c_void_p),
        ("running_mean", c_void_p),
        ("running_var", c_void_p),
        ("num_batches_tracked", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("mean", c_void_p),
        ("inverse_std", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("eps", c_double),
        ("momentum", c_double),
    )


# Functions of kernels.cpp, augment.h, head.h and muon.h: argument types, in its order, and the type of the result.
FUNCTIONS = {
    "chunk_grads_size": ((), c_int64),
    "packed_size": ((c_int, c_int), c_int64),
    "load_images": ((c_int, c_void_p, *[c_int64] * 4, c_void_p, c_int), None),
    "make_images": ((c_int, *[c_void_p] * 5, c_int, c_void_p, *[c_int] * 4, *[c_void_p] * 3, c_int), None),
    "pack_weights": ((c_void_p, c_int, c_int), None),
    "layer_forward": ((c_void_p, c_int, c_int, c_int), None),
    "layer_backward": ((c_void_p, c_int, *[c_void_p] * 4, c_int), None),
    "pool_forward": ((c_void_p, c_int, c_void_p, c_int), None),
    "pool_backward": ((c_void_p, c_int, c_void_p, c_void_p, c_int), None),
    "linear_forward": ((c_int, c_int, *[c_void_p] * 4, c_int), None),
    "cross_entropy": ((c_int, c_int, c_void_p, c_void_p, c_void_p), c_int64),
    "linear_backward": ((c_int, c_int, *[c_void_p] * 6, c_int), None),
    "muon_step": ((c_void_p, c_int, c_void_p, c_int), None),
}


def why_no_tiles() -> str | None:
    """Return why this process cannot use the matrix tiles of AMX, or None; ask the operating system for them.

    Linux gives a process the tiles' state on request, and may refuse: old kernels, some containers and emulators.
    """
    if lacking := [name for name in AMX if not torch.cpu.get_capabilities().get(name)]:
        return f"the processor lacks {', '.join(lacking)}"
    if sys.platform != "linux":
        return f"there is no way to ask {sys.platform} for the state of AMX's tiles"
    return _request_tiles()


def why_tiles_are_denied() -> str | None:
    """Return why tiles that the processor has are not used, or None where it has none or they are used."""
    capabilities = torch.cpu.get_capabilities()
    return why_no_tiles() if all(capabilities.get(name) for name in AMX) else None


def _request_tiles() -> str | None:
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) != 0:
        return f"the operating system denies AMX's tiles ({os.strerror(ctypes.get_errno())})"
    return None


def openmp_flags(version: str) -> tuple[str, ...]:
    """Return the flags by which a compiler understands OpenMP, given what it prints for `--version`.

    Apple's clang takes the option for its preprocessor alone and brings no library: the library's functions are then
    those of the one that torch has loaded.
    """
    if "Apple" in version:
        return ("-Xpreprocessor", "-fopenmp", "-undefined", "dynamic_lookup")
    return ("-fopenmp",)


def load_kernels(precision: str, size: int = 32, unit: str | None = None) -> ctypes.CDLL:
    """Return the compiled kernels, compiling them where the cache has none for this machine (some seconds).

    Args:
        precision: of activations and packed weights, "float32" or "bfloat16".
        size: rows and columns of the images, one of `SIZES`.
        unit: what computes: "vectors", the widest that the processor has; "amx", its matrix tiles, for bfloat16. For
            tests: "narrow", vectors of four floats, which are ARM's, on x86-64 too; "scalar", a slow twin of AMX.
            None takes "amx" for bfloat16 where it works (see `why_no_tiles`), else "vectors".

    Raises:
        KernelsUnavailable: no such precision or size, a processor without AVX2 or NEON (for bfloat16: without AVX-512
            and its bfloat16 instructions), no compiler or one that fails, or a cache that cannot be written.
    """
    if precision not in CAPABILITIES:
        raise KernelsUnavailable(f"there are no kernels of precision {precision!r}")
    if size not in SIZES:
        raise KernelsUnavailable(f"there are no kernels for images of {size} x {size}")
    capabilities = torch.cpu.get_capabilities()
    missing = [[name for name in needed if not capabilities.get(name)] for needed in CAPABILITIES[precision]]
    if all(missing):
        raise KernelsUnavailable(f"the processor lacks {', '.join(missing[0])}")
    compiler = find_compiler()
    if compiler is None:
        raise KernelsUnavailable("there is no C++ compiler")

    if unit is None:
        unit = "amx" if precision == "bfloat16" and why_no_tiles() is None else "vectors"
    version = _run([compiler, "--version"])
    flags = (*FLAGS, *openmp_flags(version), *PRECISION_FLAGS[precision], *UNIT_FLAGS[unit])
    command = [compiler, *flags, f"-DDEEPRES_SIZE={size}"]
    sources = [(path.name, path.read_bytes()) for path in sorted(SOURCE.parent.glob("*.[ch]*"))]
    identity = repr((sources, command, version, sorted(capabilities.items())))
    name = f"{precision}-{size}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    library = _find_or_build(command, name)
    try:
        kernels = ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelsUnavailable(f"the compiled kernels do not load: {error}") from error
    for function, (arguments, result) in FUNCTIONS.items():
        getattr(kernels, function).argtypes = arguments
        getattr(kernels, function).restype = result
    return kernels


def _find_or_build(command: list[str], name: str) -> Path:
    """Return the library's path in the cache; two processes may build it at once."""
    folder = user_cache_path("deepres") / "kernels"
    library = folder / name
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / name
            _run([*command, str(SOURCE), "-o", str(built)])
            built.replace(library)
    except OSError as error:
        raise KernelsUnavailable(f"cannot write to {folder}: {error.strerror}") from error
    return library


def _run(command: list[str]) -> str:
    """Return what the compiler prints."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise KernelsUnavailable(f"{command[0]} does not run: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line] + lines  # what it says before is where it was included
        raise KernelsUnavailable(f"{command[0]} failed: {errors[0] if errors else f'exit code {done.returncode}'}")
    return done.stdout
