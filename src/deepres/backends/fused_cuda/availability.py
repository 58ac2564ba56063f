"""What the Triton kernels need: rules that follow from what is known of the GPU, the net and the installation."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

from deepres.backends.accelerator import FIRST_BFLOAT16, Accelerator
from deepres.backends.fused.standard import why_not_standard

PRECISION = "bfloat16"
MULTIPLE = 4  # of which an image's rows are one: the stages halve them twice


def why_unsupported(model: nn.Module, device: torch.device, precision: str, sizes: Sequence[int]) -> str | None:
    """Return why the kernels cannot compute a net on a GPU, in images of these rows, or None."""
    reason = why_no_triton_kernels(
        Accelerator.of(device), precision, sizes, has_triton=find_spec("triton") is not None
    )
    return reason or why_not_standard(model, device.type)


def why_no_triton_kernels(
    accelerator: Accelerator, precision: str, sizes: Sequence[int], *, has_triton: bool
) -> str | None:
    """Return why there are no kernels for an accelerator, a precision or images of these rows, or None.

    Example:
        >>> why_no_triton_kernels(Accelerator("cuda", "Tesla T4", (7, 5)), "float16", [32], has_triton=True)
        'there are none for Tesla T4 (compute capability 7.5), which is below 8.0'
    """
    if accelerator.kind != "cuda":
        return f"there are none for {accelerator}"
    if accelerator.capability < FIRST_BFLOAT16:
        return f"there are none for {accelerator}, which is below {FIRST_BFLOAT16[0]}.{FIRST_BFLOAT16[1]}"
    if precision != PRECISION:
        return f"on a GPU there are none of precision {precision!r}, but of {PRECISION!r}"
    if other := [size for size in sizes if size % MULTIPLE]:
        return f"on a GPU there are none for images of {other[0]} x {other[0]}, which is no multiple of {MULTIPLE}"
    if not has_triton:
        return "on a GPU they need Triton, which is not installed: pip install triton"
    return None
