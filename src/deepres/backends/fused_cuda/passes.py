"""Forward and backward pass through all convolutions, on images of one size."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deepres.backends.fused_cuda.layer import Call, Layer, Scratch, Weights

IMAGE_CHANNELS = 3
PADDED_CHANNELS = 4  # of images in the kernels: a pixel is read at once


class Passes:
    """What a net computes between its images and its pooled features, in memory of its own.

    Args:
        weights: of all layers, in the order in which they compute.
        size: rows of an image.
        capacity: the most images.
        residual: whether there are shortcuts around each two layers after the first.
    """

    def __init__(self, weights: Sequence[Weights], size: int, capacity: int, *, residual: bool) -> None:
        self._residual = residual
        first, *others = weights
        self.images = first.rounded.new_zeros(capacity, size, size, PADDED_CHANNELS)
        self._layers = [Layer(first, self.images)]
        for i, each in enumerate(others, start=1):
            around = self._layers[-2].values if residual and i % 2 == 0 else None  # of a block's two layers
            self._layers.append(Layer(each, self._layers[-1], around))
        self._scratch = Scratch(self._layers)
        self._features = self._layers[-1].values  # (capacity, size / 4, size / 4, 64)
        self._pooled_gradient = self._features.new_zeros(capacity, self._features.shape[-1], dtype=torch.float32)
        self._calls: dict[tuple[str, int], list[Call]] = {}

    def forward(self, num_images: int, *, training: bool) -> Tensor:
        """Return the pooled features of the first of `images`: float32 (num_images, 64)."""
        key = "training" if training else "evaluation", num_images
        if key not in self._calls:
            self._calls[key] = self.plan_forward(num_images, training=training)
        _make(self._calls[key])
        return self._features[:num_images].mean(dim=(1, 2), dtype=torch.float32)

    def backward(self, pooled_gradient: Tensor) -> None:
        """Compute the gradients of all layers' parameters, after a forward pass of as many images in training mode."""
        num_images = len(pooled_gradient)
        key = "backward", num_images
        if key not in self._calls:
            self._calls[key] = self.plan_backward(num_images)
        self._pooled_gradient[:num_images].copy_(pooled_gradient)
        _make(self._calls[key])

    def plan_forward(self, num_images: int, *, training: bool) -> list[Call]:
        """Return what a forward pass calls."""
        layers = [layer.forward(num_images, self._scratch, training=training) for layer in self._layers]
        return [call for calls in layers for call in calls]

    def plan_backward(self, num_images: int) -> list[Call]:
        """Return what a backward pass calls."""
        scratch = self._scratch
        end, middle, before = scratch.gradients  # of a block, behind the batch normalizations
        calls: list[Call] = [self._layers[-1].pool_backward(num_images, scratch, self._pooled_gradient, end)]
        first, *others = self._layers
        for second_of_block, first_of_block in zip(others[::-2], others[-2::-2], strict=True):
            calls += second_of_block.backward(num_images, scratch, end, middle)
            calls += first_of_block.backward(num_images, scratch, middle, before, end if self._residual else None)
            end, before = before, end
        return calls + first.backward(num_images, scratch, end, None)


def _make(calls: Iterable[Call]) -> None:
    for call in calls:
        call()
