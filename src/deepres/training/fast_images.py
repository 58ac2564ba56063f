"""Lets a kernel make training images, where it makes the same ones as torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.images import ImageMaker
from deepres.data.loader import Choice, TrainStream


def use_fast_images(stream: TrainStream, precision: str, sizes: Sequence[int | None]) -> None:
    """Replace how a stream makes images of those sizes of which the first mini-batch has the same bits.

    Torch makes the others: cropped ones, for example, or all where its own additions are rounded in another way.

    Args:
        stream: of images on a CPU.
        precision: of kernels that are loaded anyway.
        sizes: rows and columns of the images of its steps; None: as they are.
    """
    torchs, normalization = stream.make_images, stream.normalization
    try:
        maker = ImageMaker(stream.images, normalization.mean, normalization.std, stream.pad, stream.padding, precision)
    except KernelsUnavailable:
        return

    def kernels(choice: Choice, size: int | None) -> Tensor:
        return maker(choice.indices, choice.augmentation.offsets, choice.augmentation.flips, size)

    first = stream.choose(0)
    proven = {size for size in sizes if torch.equal(kernels(first, size), torchs(first, size))}
    stream.make_images = lambda choice, size: (kernels if size in proven else torchs)(choice, size)
