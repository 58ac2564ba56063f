"""The variants of the kernels that work here, and what their tests share."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.backends.fused.build import KernelsUnavailable, load_kernels, why_no_tiles
from deepres.models import build_model

# The largest relative error (of norms) of what is stored in a precision, and of what is summed in float32 from it.
ROUNDING = {"float32": 1e-6, "bfloat16": 3e-3}
SUMMING = 3e-5


def reason_for(precision):
    try:
        load_kernels(precision)
    except KernelsUnavailable as error:
        return str(error)
    return None


def parameter(precision):
    reason = reason_for(precision)
    return pytest.param(precision, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


PRECISIONS = [parameter("float32"), parameter("bfloat16")]
# What computes: vectors, also of ARM's width; AMX's tiles, or the tiles' scalar twin, which runs where AMX does not.
ON_X86 = platform.machine() == "x86_64"
NARROW_MARKS = (*parameter("float32").marks, pytest.mark.skipif(not ON_X86, reason="vectors have four floats anyway"))
VARIANTS = [
    pytest.param("float32", "vectors", marks=parameter("float32").marks),
    pytest.param("float32", "narrow", marks=NARROW_MARKS),
    pytest.param("bfloat16", "vectors", marks=parameter("bfloat16").marks),
    pytest.param("bfloat16", "scalar", marks=parameter("bfloat16").marks),
    pytest.param("bfloat16", "amx", marks=pytest.mark.skipif(why_no_tiles() is not None, reason=str(why_no_tiles()))),
]
needs_float32 = pytest.mark.skipif(reason_for("float32") is not None, reason=str(reason_for("float32")))


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference in units of the expected norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def batch(num_images: int, num_classes: int = 10, seed: int = 0, size: int = 32) -> tuple[Tensor, Tensor]:
    """Smooth images, so that gradients are not all noise, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(num_images, 3, 8, 8, generator=generator), size=size, mode="bilinear")
    return images, torch.randint(num_classes, (num_images,), generator=generator)


def make_model(name: str, **options: int) -> nn.Module:
    """A net whose batch normalisations do not all start alike."""
    generator = torch.Generator().manual_seed(1)
    model = build_model(name, generator=generator, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    return model
