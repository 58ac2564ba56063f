"""Builds what computes a step, by name."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from deepres.backends.device import find_compiler
from deepres.backends.fused.agreement import disagreement
from deepres.backends.fused.build import KernelsUnavailable, kernels_error, load_kernels, why_tiles_are_denied
from deepres.backends.fused.net import FusedNet, why_unsupported
from deepres.backends.fused_cuda import availability
from deepres.backends.machine import num_cores
from deepres.backends.torch_backend import Backend, TorchBackend
from deepres.errors import first_line, unknown_name
from deepres.models import ResNet

BACKENDS = ("auto", "fused", "compiled", "eager")


COMPILE_STEPS = 500  # shorter runs end before torch.compile has paid for itself


def check_backend(name: str) -> None:
    """Raise the error for an unknown backend."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)


def plain_backend(num_steps: int, device: torch.device, notice: Callable[[str], None]) -> str:
    """Return the faster of torch's two for a run of `num_steps`; tell `notice` what would be faster.

    Elsewhere than on a CPU that is plain torch: compiling takes longer than most runs, and what it saves most of, the
    host's time for each operation, a graph saves too.
    """
    if num_steps < COMPILE_STEPS or device.type != "cpu":
        return "eager"
    if find_compiler() is None:
        notice("no C++ compiler found, which torch.compile needs: going on without it, slower")
        return "eager"
    return "compiled"


def why_not_fused(model: nn.Module, device: torch.device, precision: str, sizes: Sequence[int]) -> str | None:
    """Return why there are no fused kernels for a net and images of these rows here, or None: a CPU's are loaded."""
    if device.type != "cpu":
        return availability.why_unsupported(model, device, precision, sizes)
    if reason := why_unsupported(model, device, precision):
        return reason
    try:
        with ThreadPoolExecutor(num_cores()) as pool:  # which waits for compilers where the kernels are new
            list(pool.map(partial(load_kernels, precision), sizes))
    except KernelsUnavailable as error:
        return str(error)
    return None


def build_backend(
    name: str,
    model: ResNet,
    device: torch.device,
    precision: str,
    capacity: int,
    notice: Callable[[str], None],
    *,
    examples: Sequence[tuple[Tensor, Tensor]] = (),
    fall_back: bool = False,
) -> Backend:
    """Build a backend by name for mini-batches of up to `capacity` images.

    Args:
        name: "fused", "compiled" or "eager".
        model: computes on `device`.
        device: where.
        precision: "float32", "bfloat16" or "float16".
        capacity: the most images of a mini-batch.
        notice: is given lines for the user.
        examples: images as they are trained on and their labels, a pair for each size of image, on which the fused
            kernels are compared with the net itself, see `deepres.backends.fused.agreement`.
        fall_back: whether plain torch takes the place of fused kernels that do not compute this net.

    Raises:
        UserError: an unknown name, or the fused kernels do not work for this net or machine.
    """
    check_backend(name)
    if name != "fused":
        return TorchBackend(model, device, precision, name == "compiled", notice)
    reason = why_not_fused(model, device, precision, [images.shape[-1] for images, _ in examples])
    if reason is None:
        try:
            if device.type != "cpu":
                return _build_on_gpu(model, precision, capacity, examples)
            reason = disagreement(model, precision, examples) if examples else None
            if reason is None:
                if line := without_tiles(precision):
                    notice(line)
                return FusedNet(model, precision, capacity)
        except KernelsUnavailable as error:
            reason = str(error)
    if not fall_back:
        raise kernels_error(reason)
    notice(without_kernels(reason))
    return TorchBackend(model, device, precision, False, notice)


def _build_on_gpu(model: ResNet, precision: str, capacity: int, examples: Sequence[tuple[Tensor, Tensor]]) -> Backend:
    """Build the fused kernels of a GPU, and compare them with the net itself.

    Raises:
        KernelsUnavailable: they compute something else, or fail, or cannot be compiled.
    """
    try:
        from deepres.backends.fused_cuda.net import FusedCudaNet  # which needs Triton

        reason = disagreement(model, precision, examples, FusedCudaNet) if examples else None
        if reason is None:
            return FusedCudaNet(model, precision, capacity)
    except Exception as error:  # whatever Triton, its compiler or the driver raises: no type is documented
        raise KernelsUnavailable(innermost_reason(error)) from error
    raise KernelsUnavailable(reason)


def innermost_reason(error: BaseException) -> str:
    """Return in one line why something failed.

    Triton's compiler shows for each function on the way the source up to the place, and then, of the innermost, why.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[-1] if lines and re.fullmatch(r"at \d+:\d+:", lines[0]) else first_line(error)


def without_tiles(precision: str) -> str | None:
    """Return the notice that the fused kernels use no matrix tiles, where the processor has some for a precision."""
    denial = why_tiles_are_denied() if precision == "bfloat16" else None
    return denial and f"no matrix tiles ({denial}): the fused kernels use vectors, slower"


def without_kernels(reason: str) -> str:
    """Return the notice that plain torch takes the place of the fused kernels."""
    return f"no fused kernels ({reason}): going on without them, slower"
