"""What counts as pixels and as labels: the one place that decides it, for every function that takes them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepres.errors import UserError

IMAGE_SIZE = 32  # rows and columns of CIFAR's images
SIZES = range(8, 513)  # of images of one's own
ROUNDING = 1e-4  # how far a float pixel may lie outside [0, 1]: what float16 and resampling round
OVERSHOOT = 0.25  # up to here outside [0, 1] it is resampling or noise that left the range

Pixels: TypeAlias = Tensor | NDArray[Any]
Labels: TypeAlias = Sequence[int] | NDArray[Any] | Tensor


def as_images(pixels: object, size: int = IMAGE_SIZE) -> Tensor:
    """Return a tensor or a NumPy array of pixels as a checked tensor of shape (N, 3, `size`, `size`).

    Raises:
        UserError: they are not pixels; see `check_pixels`.
    """
    images: object = pixels
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind not in "biuf" or pixels.dtype.itemsize > 8:
            raise _pixel_error(
                size, f"got an array of {pixels.dtype}: convert with .astype('uint8') if it holds 0 to 255"
            )
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        images = torch.from_numpy(np.require(native, requirements=["C", "W"]))  # no negative strides, no warning
    check_pixels(images, size)
    assert isinstance(images, Tensor)
    return images


def check_pixels(pixels: object, size: int = IMAGE_SIZE) -> None:
    """Check the type, shape and range of a tensor of pixels.

    The values are looked at where there are any: a tracer, a compiler, `vmap`, and fake or meta tensors have none.

    Raises:
        UserError: these are not pixels, uint8 or float in [0, 1], of shape (N, 3, `size`, `size`).
    """
    if fault := _type_fault(pixels, (size, size)) or _range_fault(pixels):
        raise _pixel_error(size, fault)


def _pixel_error(size: int, fault: str) -> UserError:
    return UserError(f"expected pixels of shape (N, 3, {size}, {size}), uint8 or float in [0, 1], but {fault}")


def _type_fault(pixels: object, size: tuple[int, int]) -> str | None:
    if not isinstance(pixels, Tensor):
        return f"got {type(pixels).__name__}: give a torch.Tensor"
    if pixels.layout != torch.strided or pixels.is_quantized:
        return f"got a tensor of layout {pixels.layout} and type {pixels.dtype}: give a plain one"
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        return f"got {pixels.dtype}: convert with .to(torch.uint8) if they run from 0 to 255"
    shape = tuple(pixels.shape)
    if shape[1:] == (3, *size):
        return None
    hint = "resize them, as deepres.data.images.read_image does"
    if shape == (3, *size):
        hint = "add the batch dimension with .unsqueeze(0)"
    elif shape[1:] == (*size, 3):
        hint = "channels come first: .permute(0, 3, 1, 2)"
    elif shape == (*size, 3):
        hint = "channels come first, and the batch dimension before them: .permute(2, 0, 1).unsqueeze(0)"
    elif shape[1:] == (1, *size):
        hint = "repeat the grey channel with .repeat(1, 3, 1, 1)"
    elif shape[1:] == (4, *size):
        hint = "drop the channel of transparency with [:, :3]"
    return f"got shape {shape}: {hint}"


def _range_fault(pixels: object) -> str | None:
    assert isinstance(pixels, Tensor)
    if pixels.dtype == torch.uint8 or torch.compiler.is_compiling() or not pixels.numel():
        return None
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return None
    try:
        low, high = (float(bound) for bound in pixels.detach().float().aminmax())
    except RuntimeError:  # what has a shape but no values says so by this
        return None
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return None
    return f"got values from {low:g} to {high:g}: {_range_hint(low, high)}"


def _range_hint(low: float, high: float) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return "find out where the ones that are not finite come from, or replace them with torch.nan_to_num"
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return "limit them with .clamp(0, 1), as resampling and noise leave the range a little"
    if low >= 0 and high <= 255:
        return "divide by 255, or give uint8"
    if low >= -255 * OVERSHOOT and high <= 255 * (1 + OVERSHOOT) and high > 20:
        return "limit them with .clamp(0, 255), and divide by 255"
    if low >= 0 and high <= 65536:  # bfloat16 rounds to that
        return "divide by 65535 if they have 16 bits"
    if low >= -1 and high <= 1:
        return "give pixels that are not normalised yet; if they were scaled to [-1, 1], take (pixels + 1) / 2"
    return "give pixels that are not normalised yet, or take pixels * std + mean of that normalisation"


def check_labels(labels: object, num_images: int, num_classes: int) -> NDArray[np.int64]:
    """Return the labels of images as int64 of shape (N,); a column (N, 1), as Keras gives them, is one too.

    Args:
        labels: whole numbers from 0 to `num_classes` - 1, in a sequence, a NumPy array or a tensor.
        num_images: how many there must be.
        num_classes: how many classes there are.

    Raises:
        UserError: the labels are none, of another number than the images, or not among the classes.
    """
    expected = f"expected {num_images:,} labels, whole numbers from 0 to {num_classes - 1}, but got"
    try:
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError, RuntimeError):  # ragged, or not to be had as an array
        raise UserError(f"{expected} {type(labels).__name__} that is no array of numbers") from None
    if values.dtype.kind in "US":
        raise UserError(f"{expected} names: give the index of each in the classifier's .classes")
    if values.dtype.kind not in "iuf":
        raise UserError(f"{expected} {type(labels).__name__} of {values.dtype}")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape == (num_images, num_classes):
        raise UserError(f"{expected} shape {values.shape}: if they are one-hot or probabilities, take .argmax(axis=1)")
    if values.shape != (num_images,):
        raise UserError(f"{expected} shape {values.shape}")
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():  # nor NaN
        raise UserError(f"{expected} numbers that are not whole")
    if num_images and not (values.min() >= 0 and values.max() < num_classes):
        low, high = values.min(), values.max()
        hint = ": subtract 1, as classes count from 0" if (low, high) == (1, num_classes) else ""
        raise UserError(f"{expected} values from {low:g} to {high:g}{hint}")
    return values.astype(np.int64)
