"""Lets a kernel make training images, where it makes the same ones as torch."""

from torch import Tensor, equal

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.images import ImageMaker
from deepres.data.augment import shrink
from deepres.data.loader import Choice, TrainStream


class FastImages:
    """Makes a stream's images: by a kernel those of the sizes of which the first mini-batch has the bits of torch's.

    Torch makes the others: all where its own additions are rounded in another way, for example.

    Args:
        stream: whose images torch makes so far.
        maker: the kernel, of the stream's images.
    """

    def __init__(self, stream: TrainStream, maker: ImageMaker) -> None:
        self._torchs = stream.make_images
        self._maker = maker
        self._rows = stream.images.shape[-1]
        self._resamples = stream.make_smaller is shrink
        self.agrees: dict[int | None, bool] = {}
        """Of each size that was asked for, whether the kernel makes its images."""

    def __call__(self, choice: Choice, size: int | None) -> Tensor:
        """See `TrainStream.make_images`."""
        if size not in self.agrees:
            possible = size is None or (self._resamples and size <= self._rows)
            self.agrees[size] = possible and equal(self._kernels(choice, size), self._torchs(choice, size))
        return (self._kernels if self.agrees[size] else self._torchs)(choice, size)

    def _kernels(self, choice: Choice, size: int | None) -> Tensor:
        return self._maker(choice.indices, choice.augmentation.offsets, choice.augmentation.flips, size)


def use_fast_images(stream: TrainStream, precision: str) -> None:
    """Let a kernel make the images of a stream, see `FastImages`, unless there is none for them.

    Args:
        stream: of images on a CPU.
        precision: of kernels that are loaded anyway.
    """
    normalization = stream.normalization
    try:
        maker = ImageMaker(stream.images, normalization.mean, normalization.std, stream.pad, stream.padding, precision)
    except KernelsUnavailable:
        return
    stream.make_images = FastImages(stream, maker)
