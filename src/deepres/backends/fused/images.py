"""Training images made by a kernel: chosen, normalized, cropped, flipped and resampled in one pass over the memory."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.backends.fused.build import KernelsUnavailable, load_kernels


class ImageMaker:
    """Makes mini-batches of images.

    Args:
        images: uint8 (N, 3, S, S) on a CPU, of which mini-batches are made.
        mean: float32, (3, 1, 1) or (3, S, S), of pixels / 255.
        std: float32, (3, 1, 1).
        pad: pixels of padding on each side.
        padding: "zeros" or "reflection".
        precision: of kernels that are loaded anyway.

    Raises:
        KernelsUnavailable: there is none for such images, normalization or so much padding, or no kernel at all.
    """

    def __init__(self, images: Tensor, mean: Tensor, std: Tensor, pad: int, padding: str, precision: str) -> None:
        size = images.shape[-1]
        if images.device.type != "cpu" or images.shape[1:] != (3, size, size) or not images.is_contiguous():
            raise KernelsUnavailable("the images are no plain ones on a CPU")
        if mean.shape not in ((3, 1, 1), (3, size, size)) or std.shape != (3, 1, 1) or pad >= size:
            raise KernelsUnavailable("there is no kernel for such a normalization or so much padding")
        self._kernels = load_kernels(precision, size)
        self._images, self._mean, self._std = images, mean.contiguous(), std.contiguous()
        self._pad, self._reflects = pad, padding == "reflection"

    def __call__(self, indices: Tensor, offsets: Tensor, flips: Tensor, size: int | None = None) -> Tensor:
        """Return a mini-batch, float32 (B, 3, S, S), or (B, 3, size, size): bilinear, over all pixels that one covers.

        Args:
            indices: int64 (B,), of the images, which is not looked into: below N.
            offsets: int64 (B, 2), the row and column of the crop's corner in the padded image, 0 ... 2 * pad.
            flips: bool (B,).
            size: rows and columns, no more than S.

        Raises:
            ValueError: a larger size.
        """
        rows = self._images.shape[-1]
        if size is not None and size > rows:
            raise ValueError(f"size is {size}: images have {rows} rows")
        firsts, weights = resampling(rows, size) if size is not None else (torch.empty(0), torch.empty(0))
        made = torch.empty(len(indices), 3, size or rows, size or rows)
        indices, offsets, flips = indices.contiguous(), offsets.contiguous(), flips.contiguous()
        self._kernels.make_images(
            len(indices),
            self._images.data_ptr(),
            indices.data_ptr(),
            offsets.data_ptr(),
            flips.data_ptr(),
            self._mean.data_ptr(),
            self._mean.shape[-1] > 1,
            self._std.data_ptr(),
            self._pad,
            self._reflects,
            size or rows,
            len(weights),
            firsts.data_ptr(),
            weights.data_ptr(),
            made.data_ptr(),
            torch.get_num_threads(),
        )
        return made


@cache
def resampling(rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Return how torch resamples rows: of which inputs, from which on, and times which weights, an output is the sum.

    Args:
        rows: of an image.
        size: rows that are to be made of them, no more.

    Returns:
        The first input of each output, int32 (size,), and weights, float32 (taps, size).
    """
    each = torch.eye(rows)[None, None]  # in row i a pixel in column i alone: resampled along the row, its weights
    share = F.interpolate(each, size=(rows, size), mode="bilinear", antialias=True, align_corners=False)[0, 0]
    num_taps = int((share > 0).sum(dim=0).max())
    firsts = (share > 0).int().argmax(dim=0).clamp(max=rows - num_taps)
    inputs = firsts + torch.arange(num_taps)[:, None]  # (taps, size)
    return firsts.int(), share.gather(0, inputs).contiguous()
