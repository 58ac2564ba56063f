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
from deepres.backends.fused_cuda.layer import TILES, WEIGHT_GRADIENT_TILES, ceil_div
from deepres.models.blocks import PadShortcut

# in_channels, out_channels, rows of the input, rows of the output
SHAPES = [(3, 16, 6, 6), (16, 16, 6, 6), (16, 32, 12, 6), (32, 32, 6, 6), (32, 64, 6, 3), (64, 64, 3, 3)]
# And whether the input is normalized as it is read, which images are not.
INPUTS = [(shape, normalized) for shape in SHAPES for normalized in (False, True) if not normalized or shape[0] > 3]


class Case:
    """A convolution's inputs, and what torch makes of them in float64."""

    def __init__(self, shape, dtype, *, normalized=False):
        in_channels, out_channels, in_size, out_size = shape
        self.x = randn(B, in_size, in_size, in_channels, seed=1, dtype=dtype)
        self.weight = randn(out_channels, 3, 3, in_channels, seed=2, dtype=dtype)
        self.scale = randn(in_channels, seed=3) if normalized else None
        self.shift = randn(in_channels, seed=4) if normalized else None
        self.sizes = {
            "IN_SIZE": in_size,
            "OUT_SIZE": out_size,
            "IN_CHANNELS": in_channels,
            "OUT_CHANNELS": out_channels,
        }
        values = stored(relu(self.x.double() * self.scale + self.shift), dtype) if normalized else self.x
        self.planes, self.filters = planes(values), planes(self.weight)
        self.stride = in_size // out_size
        self.expected = maps(F.conv2d(self.planes, self.filters, stride=self.stride, padding=1))
        self.num_pixels, self.channels, self.tile = B * out_size**2, out_channels, TILES[out_channels]
        self.num_tiles = ceil_div(self.num_pixels, self.tile)

    def forward(self):
        output = torch.full(self.expected.shape, 7.0, dtype=self.x.dtype)
        sums = torch.full((2, self.channels, self.num_tiles), 7.0)
        Launch(
            conv3x3_forward,
            (self.num_tiles,),
            {
                "input_ptr": self.x,
                "scale_ptr": self.scale,
                "shift_ptr": self.shift,
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
@pytest.mark.parametrize(("shape", "normalized"), INPUTS)
def test_convolution_and_its_sums(shape, normalized, dtype):
    case = Case(shape, dtype, normalized=normalized)
    output, sums = case.forward()
    assert error(output, stored(case.expected, dtype)) < STORED[dtype]
    tiles = tiles_of(case.expected.flatten(0, 2), case.tile)
    assert error(sums[0].T, torch.stack([tile.sum(0) for tile in tiles])) < FLOAT32
    squares = torch.stack([((tile - tile.mean(0)) ** 2).sum(0) for tile in tiles])
    assert error(sums[1].T, squares) < FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_passes_relu(dtype):
    case = Case(SHAPES[1], dtype, normalized=True)
    case.x[2, 3, 3, 5] = float("nan")
    output, sums = case.forward()
    assert output[2, 2:5, 2:5].isnan().all()
    assert int(output.isnan().sum()) == 9 * 16
    assert sums.isnan().any(-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "normalized"), INPUTS)
def test_weight_gradient(shape, normalized, dtype):
    case = Case(shape, dtype, normalized=normalized)
    tile = WEIGHT_GRADIENT_TILES[case.channels]
    num_tiles = ceil_div(case.num_pixels, tile)
    gradient, (a, b, c) = randn(*case.expected.shape, seed=5, dtype=dtype), randn(3, case.channels, seed=6)
    output = case.expected.to(dtype)
    left = torch.full_like(output, 7.0)
    parts = torch.full((num_tiles, *case.weight.shape), 7.0)
    arguments = {
        "input_ptr": case.x,
        "scale_ptr": case.scale,
        "shift_ptr": case.shift,
        "gradient_ptr": gradient,
        "output_ptr": output,
        "a_ptr": a,
        "b_ptr": b,
        "c_ptr": c,
        "output_gradient_ptr": left,
        "parts_ptr": parts,
        "num_pixels": case.num_pixels,
        **case.sizes,
        "TILE": tile,
        "TILES": 1,
    }
    Launch(conv3x3_weight_gradient, (len(parts), 3), arguments)()
    output_gradient = a.double() * gradient + b.double() * output + c.double()
    assert error(left, stored(output_gradient, dtype)) < STORED[dtype]
    expected = conv2d_weight(case.planes, case.filters.shape, planes(left), stride=case.stride, padding=1)
    assert error(parts.sum(0), maps(expected)) < FLOAT32
    whole = torch.full((1, *case.weight.shape), 7.0)
    Launch(
        conv3x3_weight_gradient,
        (1, 3),
        {**arguments, "output_gradient_ptr": None, "parts_ptr": whole, "TILES": num_tiles + 1},
    )()
    assert error(whole[0], maps(expected)) < FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize(("with_shortcut", "kept"), [(True, True), (False, False), (False, True)])
def test_input_gradient(shape, with_shortcut, kept, dtype):
    case = Case(shape, dtype)
    in_channels, _, in_size, _ = shape
    output_gradient = randn(*case.expected.shape, seed=5, dtype=dtype)
    previous = randn(*case.x.shape, seed=6, dtype=dtype)
    scale, shift, mean, inverse_std = randn(4, in_channels, seed=7)
    values = relu(case.x) if kept else None
    shortcut_gradient = randn(*case.expected.shape, seed=8, dtype=dtype) if with_shortcut else None
    tile, num_pixels = TILES[in_channels], B * in_size**2
    gradient, sums = torch.full_like(case.x, 7.0), torch.full((2, in_channels, ceil_div(num_pixels, tile)), 7.0)
    Launch(
        conv3x3_input_gradient,
        (ceil_div(num_pixels, tile),),
        {
            "output_gradient_ptr": output_gradient,
            "weight_ptr": case.weight,
            "shortcut_gradient_ptr": shortcut_gradient,
            "values_ptr": values,
            "previous_ptr": previous,
            "scale_ptr": scale,
            "shift_ptr": shift,
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
    passes = values > 0 if kept else previous * scale + shift > 0
    expected = maps(expected) * passes
    assert error(gradient, stored(expected, dtype)) < STORED[dtype]
    normalized = (previous.double() - mean) * inverse_std
    for found, per_pixel in zip(sums, (expected, expected * normalized), strict=True):
        tiles = tiles_of(per_pixel.flatten(0, 2), tile)
        assert error(found.T, torch.stack([each.sum(0) for each in tiles])) < 10 * FLOAT32


def shortcut_backward(gradient, case):
    """The gradient of a block's input that goes around its convolutions, by autograd."""
    if case.stride == 1:
        return gradient
    x = case.planes.clone().requires_grad_()
    shortcut = PadShortcut(case.sizes["IN_CHANNELS"], case.sizes["OUT_CHANNELS"], case.stride)
    return torch.autograd.grad(shortcut(x), x, gradient)[0]
