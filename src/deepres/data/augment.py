"""Normalisation and augmentation: pure functions of a whole batch, on the device where it lies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from deepres.errors import unknown_name
from deepres.inputs import IMAGE_SIZE
from deepres.recipes.recipe import NORMALIZATIONS as NORMALIZATIONS


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from, and divides, pixels / 255. It is part of a trained net and saved with its weights.

    Attributes:
        mean: float32, (3, H, W) for a mean per pixel, or (3, 1, 1) for a mean per channel of images of 32 x 32.
        std: float32, same shape or (3, 1, 1).
    """

    mean: Tensor
    std: Tensor

    @property
    def image_size(self) -> int:
        """Rows and columns of the images: those of the mean, or CIFAR's."""
        return self.mean.shape[-1] if self.mean.shape[-1] > 1 else IMAGE_SIZE

    @classmethod
    def fit(cls, images: Tensor, kind: str) -> "Normalization":
        """Compute the statistics of training images, on the CPU whatever holds them: the same ones for every device.

        Args:
            images: uint8 (N, 3, H, W), the training images and no others.
            kind: "pixel_mean": the mean of each pixel, nothing divided (section 4.2); "channel": mean and
                standard deviation of each channel over all images and pixels. Where images are not of 32 x 32, the
                mean is repeated for each pixel, so that its shape says for which images a net was trained.

        Raises:
            UserError: another kind.
        """
        if kind not in NORMALIZATIONS:
            raise unknown_name("normalization", kind, NORMALIZATIONS)
        device, images, num_channels = images.device, images.cpu(), images.shape[1]
        if kind == "pixel_mean":
            mean = images.sum(dim=0, dtype=torch.int64).double() / len(images)  # (3, H, W)
            return cls(mean=(mean / 255).float(), std=torch.ones(num_channels, 1, 1)).to(device)
        # From counts of the 256 values: exact, and without a copy of the images in a wider type.
        counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(num_channels)])
        share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (share * values).sum(dim=1, keepdim=True)  # (3, 1)
        std = (share * (values - mean) ** 2).sum(dim=1, keepdim=True).sqrt()
        fitted = cls(mean=mean.float().unsqueeze(-1), std=std.float().unsqueeze(-1))  # (3, 1, 1)
        return fitted.for_images_of(images.shape[-1]).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (B, 3, H, W) to float32 of the same shape."""
        highest = self.mean.new_full((), 255.0)  # a tensor: by a number, a GPU multiplies with its rounded reciprocal
        return images.to(torch.float32).div_(highest).sub_(self.mean).div_(self.std)

    def for_images_of(self, rows: int) -> "Normalization":
        """Return this for images of another size: itself if they are of its own, else the mean of each channel."""
        if rows == self.image_size:
            return self
        mean = self.mean.mean(dim=(1, 2), keepdim=True)  # (3, 1, 1)
        return Normalization(mean if rows == IMAGE_SIZE else mean.repeat(1, rows, rows), self.std)

    def to(self, device: torch.device) -> "Normalization":
        """Return the same statistics on another device."""
        return Normalization(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Augmentation:
    """The random choices for N images: where each is cropped, and whether it is flipped.

    Attributes:
        offsets: int64 (N, 2), the row and column of the crop's corner in the padded image, 0 ... 2 * pad.
        flips: bool (N,).
    """

    offsets: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, num_images: int, pad: int, generator: Generator) -> "Augmentation":
        """Draw uniformly among the (2 * pad + 1) squared crops, and flip with probability 1/2 (section 4.2)."""
        offsets = torch.randint(2 * pad + 1, (num_images, 2), generator=generator)
        flips = torch.rand(num_images, generator=generator) < 0.5
        return cls(offsets, flips)

    def to(self, device: torch.device) -> "Augmentation":
        """Return the same choices on another device."""
        return Augmentation(self.offsets.to(device), self.flips.to(device))

    def __getitem__(self, index: slice) -> "Augmentation":
        return Augmentation(self.offsets[index], self.flips[index])


def crop_and_flip(images: Tensor, choices: Augmentation, pad: int, padding: str = "zeros") -> Tensor:
    """Pad each image on all sides, cut out a crop of its own size, and flip it left to right or not.

    Args:
        images: (B, C, H, W), any dtype; normalise first if zero is to mean the mean.
        choices: the crop and flip of each of the B images.
        pad: pixels of padding on each side.
        padding: "zeros" or "reflection" (which does not repeat the outermost pixels).

    Returns:
        (B, C, H, W), same dtype.
    """
    batch, _, height, width = images.shape
    # A view of all crops there are, from which each image's is copied: (B, C, 2 pad + 1, 2 pad + 1, H, W).
    mode = "constant" if padding == "zeros" else "reflect"
    windows = F.pad(images, (pad, pad, pad, pad), mode=mode).unfold(2, height, 1).unfold(3, width, 1)
    index = torch.arange(batch, device=images.device)
    crops = windows[index, :, choices.offsets[:, 0], choices.offsets[:, 1]]  # (B, C, H, W)
    return torch.where(choices.flips[:, None, None, None], crops.flip(-1), crops)


def shrink(images: Tensor, size: int) -> Tensor:
    """Resample images (B, C, H, W) to (B, C, size, size): bilinear, over all pixels that a smaller one covers."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def crop_middle(images: Tensor, size: int) -> Tensor:
    """Return the middle (B, C, size, size) of images (B, C, H, W)."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size].contiguous()


SMALLER: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {"resampled": shrink, "cropped": crop_middle},
)
"""The ways to make images smaller, see `Recipe.small_images`."""
