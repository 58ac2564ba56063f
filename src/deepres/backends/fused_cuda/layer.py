"""A convolution with its batch normalization: the memory that it works on, and the kernels of its passes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deepres.backends.fused_cuda.convolution import (
    conv3x3_forward,
    conv3x3_input_gradient,
    conv3x3_weight_gradient,
)
from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.normalization import (
    batch_gradients,
    batch_statistics,
    output_gradient,
    pool_gradient,
    residual_sum,
    running_normalization,
)

Call = Callable[[], object]


@dataclass(frozen=True)
class Split:
    """How the work of a kernel is split up."""

    tile: int
    """Pixels that a program works on at once: as many as the registers hold."""
    part: int = 0
    """Pixels that a program works on one tile after the other; 0: those of one tile."""
    warps: int = 4
    """See `Launch`."""
    stages: int = 1
    """See `Launch`."""


# By the channels of what is computed.
FORWARD = {16: Split(256, stages=2), 32: Split(128, stages=3), 64: Split(64, stages=3)}
INPUT_GRADIENT = {16: Split(256), 32: Split(128, stages=3), 64: Split(64, stages=3)}
# By the channels of the output. Smaller parts are more programs at a time, and more memory traffic for the sums of
# each of them, which are added up afterwards.
WEIGHT_GRADIENT = {
    16: Split(256, part=2048, stages=2),
    32: Split(128, part=1024, stages=2),
    64: Split(32, part=256, stages=3),
}
TILES = {16: 128, 32: 128, 64: 64}  # of kernels that work pixel by pixel
SUMS = 1024  # of tiles and channels, that a program adds at once


def ceil_div(dividend: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-dividend // divisor)


@dataclass(frozen=True)
class Weights:
    """The parameters and buffers of a layer, whatever the size of the images."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    rounded: Tensor
    """The convolution's weights as the kernels read them: (out_channels, 3, 3, in_channels), 0 where padded."""
    conv_grad: Tensor
    """(out_channels, 3, 3, in_channels), float32."""
    norm_weight_grad: Tensor
    norm_bias_grad: Tensor


class Scratch:
    """Memory that layers use one after the other.

    Args:
        layers: of images of one size.
    """

    def __init__(self, layers: list["Layer"]) -> None:
        device = layers[0].output.device
        self.sums = torch.zeros(max(layer.num_sums for layer in layers), device=device)
        self.parts = torch.zeros(
            max(layer.num_parts * layer.weights.rounded.numel() for layer in layers), device=device
        )
        largest = max((layer.output for layer in layers), key=Tensor.numel)
        self.output_gradient = torch.zeros_like(largest)
        # Behind the batch normalizations of a block's end, of its middle, and of the end of the block before.
        self.gradients = [torch.zeros_like(largest) for _ in range(3)]


class Layer:
    """A convolution, its batch normalization and ReLU, and the memory for what they compute.

    Args:
        weights: its parameters.
        source: the layer before, or images, (capacity, size, size, 4).
        shortcut: values that are added before the ReLU.
    """

    def __init__(self, weights: Weights, source: "Layer | Tensor", shortcut: Tensor | None = None) -> None:
        self.weights = weights
        self._previous = None if isinstance(source, Tensor) else source
        self._input: Tensor = source if isinstance(source, Tensor) else source.values
        self._shortcut = shortcut
        self._capacity: int
        self._in_size: int
        self._in_channels: int
        self._capacity, self._in_size, _, self._in_channels = self._input.shape
        self._size = self._in_size // weights.conv.stride[0]
        self._channels = weights.conv.out_channels
        shape = (self._capacity, self._size, self._size, self._channels)
        self.output: Tensor = self._input.new_zeros(shape)
        self.values: Tensor = self._input.new_zeros(shape)
        # The parts into which the next layer divides these pixels as it computes their gradients.
        self._gradient_groups = 1
        if self._previous is not None:
            self._previous._gradient_groups = (self._in_size // self._size) ** 2
        statistics = torch.zeros(7, self._channels, device=self.output.device)
        self.mean, self.inverse_std, self._scale, self._shift, self._a, self._b, self._c = statistics

    @property
    def num_sums(self) -> int:
        """The numbers that a pass over the output leaves of its tiles."""
        return 2 * self._channels * max(self._num_tiles(self._capacity), self._num_gradient_tiles(self._capacity))

    @property
    def num_parts(self) -> int:
        """The parts in which the weights' gradient is computed."""
        return self._num_parts(self._capacity)

    def _num_pixels(self, num_images: int) -> int:
        return num_images * self._size**2

    def _num_tiles(self, num_images: int) -> int:
        """The programs that compute the output."""
        return ceil_div(self._num_pixels(num_images), FORWARD[self._channels].tile)

    def _num_gradient_tiles(self, num_images: int) -> int:
        """The programs that compute the gradient behind this batch normalization."""
        groups = self._gradient_groups
        return groups * ceil_div(self._num_pixels(num_images), groups * INPUT_GRADIENT[self._channels].tile)

    def _num_parts(self, num_images: int) -> int:
        return ceil_div(self._num_pixels(num_images), WEIGHT_GRADIENT[self._channels].part)

    def forward(self, num_images: int, scratch: Scratch, *, training: bool) -> list[Call]:
        """Return what computes the output, its normalization, and the values."""
        return [
            self._convolve(num_images, scratch.sums if training else None),
            self._normalize_batch(num_images, scratch) if training else self._normalize_by_running(),
            self._add_shortcut(num_images),
        ]

    def backward(
        self,
        num_images: int,
        scratch: Scratch,
        gradient: Tensor,
        input_gradient: Tensor | None,
        shortcut_gradient: Tensor | None = None,
    ) -> list[Call]:
        """Return what computes the gradients of the parameters and of the input.

        Args:
            num_images: of the mini-batch.
            scratch: holds the sums that belong to `gradient`, and afterwards those of `input_gradient`.
            gradient: behind the batch normalization.
            input_gradient: where the gradient behind the batch normalization before is left; None: it is not needed.
            shortcut_gradient: what a shortcut adds to the gradient of the input.
        """
        calls: list[Call] = [
            self._normalization_gradients(num_images, scratch),
            self._output_gradient(num_images, scratch, gradient),
            *self._weight_gradient(num_images, scratch),
        ]
        if input_gradient is not None:
            calls.append(self._input_gradient(num_images, scratch, input_gradient, shortcut_gradient))
        return calls

    def pool_backward(self, num_images: int, scratch: Scratch, pooled_gradient: Tensor, gradient: Tensor) -> Launch:
        """Return what takes the gradient of the values' means, float32 (capacity, channels), to `gradient`."""
        return Launch(
            pool_gradient,
            (self._num_gradient_tiles(num_images),),
            {
                "pooled_gradient_ptr": pooled_gradient,
                "values_ptr": self.values,
                "output_ptr": self.output,
                "mean_ptr": self.mean,
                "inverse_std_ptr": self.inverse_std,
                "gradient_ptr": gradient,
                "sums_ptr": scratch.sums,
                "num_pixels": self._num_pixels(num_images),
                "SIZE": self._size,
                "CHANNELS": self._channels,
                "TILE": INPUT_GRADIENT[self._channels].tile,
            },
        )

    @property
    def _shape(self) -> dict[str, int]:
        return {
            "IN_SIZE": self._in_size,
            "OUT_SIZE": self._size,
            "IN_CHANNELS": self._in_channels,
            "OUT_CHANNELS": self._channels,
            "STRIDE": self._in_size // self._size,
        }

    def _convolve(self, num_images: int, sums: Tensor | None) -> Launch:
        split = FORWARD[self._channels]
        return Launch(
            conv3x3_forward,
            (self._num_tiles(num_images),),
            {
                "input_ptr": self._input,
                "weight_ptr": self.weights.rounded,
                "output_ptr": self.output,
                "sums_ptr": sums,
                "num_pixels": self._num_pixels(num_images),
                **self._shape,
                "TILE": split.tile,
            },
            split.warps,
            split.stages,
        )

    def _normalize_batch(self, num_images: int, scratch: Scratch) -> Launch:
        norm, num_tiles = self.weights.norm, self._num_tiles(num_images)
        return Launch(
            batch_statistics,
            (self._channels // self._adding(num_tiles)["GROUP"],),
            {
                "sums_ptr": scratch.sums,
                "weight_ptr": norm.weight,
                "bias_ptr": norm.bias,
                "running_mean_ptr": norm.running_mean,
                "running_var_ptr": norm.running_var,
                "num_batches_ptr": norm.num_batches_tracked,
                "mean_ptr": self.mean,
                "inverse_std_ptr": self.inverse_std,
                "scale_ptr": self._scale,
                "shift_ptr": self._shift,
                "num_tiles": num_tiles,
                "num_pixels": self._num_pixels(num_images),
                "momentum": norm.momentum,
                "eps": norm.eps,
                "TILE": FORWARD[self._channels].tile,
                **self._adding(num_tiles),
            },
        )

    def _normalize_by_running(self) -> Launch:
        norm = self.weights.norm
        return Launch(
            running_normalization,
            (1,),
            {
                "weight_ptr": norm.weight,
                "bias_ptr": norm.bias,
                "running_mean_ptr": norm.running_mean,
                "running_var_ptr": norm.running_var,
                "scale_ptr": self._scale,
                "shift_ptr": self._shift,
                "eps": norm.eps,
                "CHANNELS": self._channels,
            },
        )

    def _add_shortcut(self, num_images: int) -> Launch:
        return Launch(
            residual_sum,
            (ceil_div(self._num_pixels(num_images), TILES[self._channels]),),
            {
                "output_ptr": self.output,
                "scale_ptr": self._scale,
                "shift_ptr": self._shift,
                "shortcut_ptr": self._shortcut,
                "values_ptr": self.values,
                "num_pixels": self._num_pixels(num_images),
                "SIZE": self._size,
                "CHANNELS": self._channels,
                "SHORTCUT_CHANNELS": 0 if self._shortcut is None else self._shortcut.shape[-1],
                "TILE": TILES[self._channels],
            },
        )

    def _normalization_gradients(self, num_images: int, scratch: Scratch) -> Launch:
        num_tiles = self._num_gradient_tiles(num_images)
        return Launch(
            batch_gradients,
            (self._channels // self._adding(num_tiles)["GROUP"],),
            {
                "sums_ptr": scratch.sums,
                "weight_ptr": self.weights.norm.weight,
                "mean_ptr": self.mean,
                "inverse_std_ptr": self.inverse_std,
                "weight_gradient_ptr": self.weights.norm_weight_grad,
                "bias_gradient_ptr": self.weights.norm_bias_grad,
                "a_ptr": self._a,
                "b_ptr": self._b,
                "c_ptr": self._c,
                "num_tiles": num_tiles,
                "num_pixels": self._num_pixels(num_images),
                **self._adding(num_tiles),
            },
        )

    def _adding(self, num_tiles: int) -> dict[str, int]:
        """Return how the sums of the tiles are added: those of many tiles, or of fewer tiles of more channels."""
        chunk = min(SUMS, 1 << (num_tiles - 1).bit_length())
        return {
            "CHANNELS": self._channels,
            "GROUP": min(self._channels, SUMS // chunk),
            "CHUNK": chunk,
            "CHUNKS": ceil_div(num_tiles, chunk),
        }

    def _output_gradient(self, num_images: int, scratch: Scratch, gradient: Tensor) -> Launch:
        return Launch(
            output_gradient,
            (ceil_div(self._num_pixels(num_images), TILES[self._channels]),),
            {
                "gradient_ptr": gradient,
                "output_ptr": self.output,
                "a_ptr": self._a,
                "b_ptr": self._b,
                "c_ptr": self._c,
                "output_gradient_ptr": scratch.output_gradient,
                "num_pixels": self._num_pixels(num_images),
                "CHANNELS": self._channels,
                "TILE": TILES[self._channels],
            },
        )

    def _weight_gradient(self, num_images: int, scratch: Scratch) -> list[Call]:
        num_parts, split = self._num_parts(num_images), WEIGHT_GRADIENT[self._channels]
        launch = Launch(
            conv3x3_weight_gradient,
            (num_parts, 3),
            {
                "input_ptr": self._input,
                "output_gradient_ptr": scratch.output_gradient,
                "parts_ptr": scratch.parts,
                "num_pixels": self._num_pixels(num_images),
                **self._shape,
                "TILE": split.tile,
                "TILES": ceil_div(min(self._num_pixels(num_images), split.part), split.tile),
            },
            split.warps,
            split.stages,
        )
        grad = self.weights.conv_grad
        parts = scratch.parts[: num_parts * grad.numel()].view(num_parts, *grad.shape)
        return [launch, partial(torch.sum, parts, dim=0, out=grad)]

    def _input_gradient(
        self, num_images: int, scratch: Scratch, input_gradient: Tensor, shortcut_gradient: Tensor | None
    ) -> Launch:
        before = self._previous
        assert before is not None
        split = INPUT_GRADIENT[before._channels]
        return Launch(
            conv3x3_input_gradient,
            (before._num_gradient_tiles(num_images),),
            {
                "output_gradient_ptr": scratch.output_gradient,
                "weight_ptr": self.weights.rounded,
                "shortcut_gradient_ptr": shortcut_gradient,
                "values_ptr": before.values,
                "previous_ptr": before.output,
                "mean_ptr": before.mean,
                "inverse_std_ptr": before.inverse_std,
                "gradient_ptr": input_gradient,
                "sums_ptr": scratch.sums,
                "num_pixels": before._num_pixels(num_images),
                **self._shape,
                "TILE": split.tile,
            },
            split.warps,
            split.stages,
        )
