"""Every kernel of `deepres.backends.fused_cuda.convolution` against torch in float64, in Triton's interpreter.

`test_interpreter.py` runs these tests in a process of their own. Numbers of pixels fill no whole tiles.
"""

import pytest
import torch
import torch.nn.functional as F
from exact_bfloat16 import exact_bfloat16  # noqa: F401 (a fixture)
from kernel_checks import DTYPES, FLOAT32, STORED, B, error, maps, planes, randn, relu, stored, tiles_of
from torch.nn.grad import conv2d_input, conv2d_weight

from deepres.backends.fused_cuda.convolution import (
    conv3x3_forward,
    conv3x3_input_gradient,
    conv3x3_weight_gradient,
)
from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.layer import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, ceil_div
from deepres.models.blocks import PadShortcut

# in_channels, out_channels, rows of the input, rows of the output
SHAPES = [(4, 16, 6, 6), (16, 16, 6, 6), (16, 32, 12, 6), (32, 32, 6, 6), (32, 64, 6, 3), (64, 64, 3, 3)]


class Case:
    """A convolution's inputs, and what torch makes of them in float64."""

    def __init__(self, shape, dtype):
        in_channels, out_channels, in_size, out_size = shape
        self.x = randn(B, in_size, in_size, in_channels, seed=1, dtype=dtype)
        self.weight = randn(out_channels, 3, 3, in_channels, seed=2, dtype=dtype)
        self.sizes = {
            "IN_SIZE": in_size,
            "OUT_SIZE": out_size,
            "IN_CHANNELS": in_channels,
            "OUT_CHANNELS": out_channels,
            "STRIDE": in_size // out_size,
        }
        self.planes, self.filters = planes(self.x), planes(self.weight)
        self.stride = in_size // out_size
        self.expected = maps(F.conv2d(self.planes, self.filters, stride=self.stride, padding=1))
        self.num_pixels, self.channels, self.tile = B * out_size**2, out_channels, FORWARD[out_channels].tile
        self.num_tiles = ceil_div(self.num_pixels, self.tile)

    def forward(self):
        output = torch.full(self.expected.shape, 7.0, dtype=self.x.dtype)
        sums = torch.full((2, self.channels, self.num_tiles), 7.0)
        Launch(
            conv3x3_forward,
            (self.num_tiles,),
            {
                "input_ptr": self.x,
                "weight_ptr": self.weight,
                "output_ptr": output,
                "sums_ptr": sums,
                "num_pixels": self.num_pixels,
                **self.sizes,
                "TILE": self.tile,
            },
        )()
        return output, sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_sums(shape, dtype):
    case = Case(shape, dtype)
    output, sums = case.forward()
    assert error(output, stored(case.expected, dtype)) < STORED[dtype]
    tiles = tiles_of(case.expected.flatten(0, 2), case.tile)
    assert error(sums[0].T, torch.stack([tile.sum(0) for tile in tiles])) < FLOAT32
    squares = torch.stack([((tile - tile.mean(0)) ** 2).sum(0) for tile in tiles])
    assert error(sums[1].T, squares) < FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient(shape, dtype):
    case = Case(shape, dtype)
    tile = WEIGHT_GRADIENT[case.channels].tile
    num_tiles = ceil_div(case.num_pixels, tile)
    output_gradient = randn(*case.expected.shape, seed=5, dtype=dtype)
    expected = conv2d_weight(case.planes, case.filters.shape, planes(output_gradient), stride=case.stride, padding=1)
    for num_parts, tiles_of_part in ((num_tiles, 1), (1, num_tiles + 1)):
        parts = torch.full((num_parts, *case.weight.shape), 7.0)
        Launch(
            conv3x3_weight_gradient,
            (num_parts, 3),
            {
                "input_ptr": case.x,
                "output_gradient_ptr": output_gradient,
                "parts_ptr": parts,
                "num_pixels": case.num_pixels,
                **case.sizes,
                "TILE": tile,
                "TILES": tiles_of_part,
            },
        )()
        assert error(parts.sum(0), maps(expected)) < FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_input_gradient(shape, with_shortcut, dtype):
    case = Case(shape, dtype)
    in_channels, _, in_size, _ = shape
    output_gradient = randn(*case.expected.shape, seed=5, dtype=dtype)
    previous = randn(*case.x.shape, seed=6, dtype=dtype)
    mean, inverse_std = randn(2, in_channels, seed=7)
    values = relu(case.x)
    shortcut_gradient = randn(*case.expected.shape, seed=8, dtype=dtype) if with_shortcut else None
    tile, num_pixels, groups = INPUT_GRADIENT[in_channels].tile, B * in_size**2, case.stride**2
    num_programs = groups * ceil_div(num_pixels, groups * tile)
    gradient, sums = torch.full_like(case.x, 7.0), torch.full((2, in_channels, num_programs), 7.0)
    Launch(
        conv3x3_input_gradient,
        (num_programs,),
        {
            "output_gradient_ptr": output_gradient,
            "weight_ptr": case.weight,
            "shortcut_gradient_ptr": shortcut_gradient,
            "values_ptr": values,
            "previous_ptr": previous,
            "mean_ptr": mean,
            "inverse_std_ptr": inverse_std,
            "gradient_ptr": gradient,
            "sums_ptr": sums,
            "num_pixels": num_pixels,
            **case.sizes,
            "TILE": tile,
        },
    )()
    expected = conv2d_input(case.planes.shape, case.filters, planes(output_gradient), stride=case.stride, padding=1)
    if with_shortcut:
        expected = expected + shortcut_backward(planes(shortcut_gradient), case)
    expected = maps(expected) * (values > 0)
    assert error(gradient, stored(expected, dtype)) < STORED[dtype]
    normalized = (previous.double() - mean) * inverse_std
    for found, per_pixel in zip(sums, (expected, expected * normalized), strict=True):
        parts = [  # of even and of odd rows and columns, where the stride is 2
            per_pixel[:, row :: case.stride, column :: case.stride].flatten(0, 2)
            for row in range(case.stride)
            for column in range(case.stride)
        ]
        tiles = [
            tile_of_part
            for each in zip(*(tiles_of(part, tile) for part in parts), strict=True)
            for tile_of_part in each
        ]
        assert error(found.T, torch.stack([each.sum(0) for each in tiles])) < 10 * FLOAT32


def shortcut_backward(gradient, case):
    """The gradient of a block's input that goes around its convolutions, by autograd."""
    if case.stride == 1:
        return gradient
    x = case.planes.clone().requires_grad_()
    shortcut = PadShortcut(case.sizes["IN_CHANNELS"], case.sizes["OUT_CHANNELS"], case.stride)
    return torch.autograd.grad(shortcut(x), x, gradient)[0]
