"""Every kernel of `deepres.backends.fused_cuda` against torch in float64, in Triton's interpreter.

`test_interpreter.py` runs these tests in a process of their own. Numbers of pixels fill no whole tiles.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from deepres.backends.fused_cuda.convolution import (
    conv3x3_forward,
    conv3x3_input_gradient,
    conv3x3_weight_gradient,
)
from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.layer import TILES, WEIGHT_GRADIENT_TILES, ceil_div
from deepres.backends.fused_cuda.normalization import (
    batch_gradients,
    batch_statistics,
    pool_gradient,
    residual_sum,
    running_normalization,
)
from deepres.models.blocks import PadShortcut

B = 5
FLOAT32, FLOAT16 = 2e-6, 1e-3  # relative errors, of norms
# in_channels, out_channels, rows of the input, rows of the output
SHAPES = [(3, 16, 6, 6), (16, 16, 6, 6), (16, 32, 12, 6), (32, 32, 6, 6), (32, 64, 6, 3), (64, 64, 3, 3)]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def planes(maps):
    """Maps with channels innermost as torch's convolutions take them, in float64."""
    return maps.double().permute(0, 3, 1, 2)


def maps(planes):
    return planes.permute(0, 2, 3, 1)


def relu(x):
    return x.clamp_min(0)


class Case:
    """A convolution's inputs, and what torch makes of them in float64."""

    def __init__(self, shape, *, normalized=False, dtype=torch.float32):
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
        values = relu(self.x.double() * self.scale + self.shift) if normalized else self.x
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


def tiles_of(pixels, tile):
    """Pixels (n, channels) as a list of tiles."""
    return [pixels[start : start + tile].double() for start in range(0, len(pixels), tile)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalized", [False, True])
def test_convolution_and_its_sums(shape, normalized):
    case = Case(shape, normalized=normalized and shape[0] > 3)
    output, sums = case.forward()
    assert error(output, case.expected) < FLOAT32
    tiles = tiles_of(case.expected.flatten(0, 2), case.tile)
    assert error(sums[0].T, torch.stack([tile.sum(0) for tile in tiles])) < FLOAT32
    squares = torch.stack([((tile - tile.mean(0)) ** 2).sum(0) for tile in tiles])
    assert error(sums[1].T, squares) < FLOAT32


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]])
def test_convolution_in_half_precision_sums_in_float32(shape):
    case = Case(shape, normalized=True, dtype=torch.float16)
    output, _ = case.forward()
    assert error(output, case.expected) < FLOAT16


def test_nan_passes_relu():
    case = Case(SHAPES[1], normalized=True)
    case.x[2, 3, 3, 5] = float("nan")
    output, sums = case.forward()
    assert output[2, 2:5, 2:5].isnan().all()
    assert int(output.isnan().sum()) == 9 * 16
    assert sums.isnan().any(-1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalized", [False, True])
def test_weight_gradient(shape, normalized):
    case = Case(shape, normalized=normalized and shape[0] > 3)
    tile = WEIGHT_GRADIENT_TILES[case.channels]
    num_tiles = ceil_div(case.num_pixels, tile)
    gradient, (a, b, c) = randn(*case.expected.shape, seed=5), randn(3, case.channels, seed=6)
    output = case.expected.float()
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
    assert error(left, output_gradient) < FLOAT32
    expected = conv2d_weight(case.planes, case.filters.shape, planes(output_gradient), stride=case.stride, padding=1)
    assert error(parts.sum(0), maps(expected)) < FLOAT32
    whole = torch.full((1, *case.weight.shape), 7.0)
    Launch(
        conv3x3_weight_gradient,
        (1, 3),
        {**arguments, "output_gradient_ptr": None, "parts_ptr": whole, "TILES": num_tiles + 1},
    )()
    assert error(whole[0], maps(expected)) < FLOAT32


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize(("with_shortcut", "kept"), [(True, True), (False, False), (False, True)])
def test_input_gradient(shape, with_shortcut, kept):
    case = Case(shape)
    in_channels, _, in_size, _ = shape
    output_gradient, previous = randn(*case.expected.shape, seed=5), randn(*case.x.shape, seed=6)
    scale, shift, mean, inverse_std = randn(4, in_channels, seed=7)
    values = relu(case.x) if kept else None
    shortcut_gradient = randn(*case.expected.shape, seed=8) if with_shortcut else None
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
    assert error(gradient, expected) < FLOAT32
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


def test_statistics_of_a_batch():
    """Of numbers whose mean is far from zero, in more tiles than are added at once."""
    tile, channels = 8, 4
    pixels = 100 + randn(40 * tile - 3, channels)
    tiles = tiles_of(pixels, tile)
    sums = torch.stack(
        [
            torch.stack([each.sum(0) for each in tiles], dim=1),
            torch.stack([((each - each.mean(0)) ** 2).sum(0) for each in tiles], dim=1),
        ]
    ).float()
    norm = torch.nn.BatchNorm1d(channels, eps=1e-3, momentum=0.3).double()
    norm.weight.data, norm.bias.data = randn(2, channels, seed=1).double()
    norm.running_mean, norm.running_var = randn(channels, seed=2).double(), randn(channels, seed=3).double().abs()
    running_mean, running_var = norm.running_mean.float(), norm.running_var.float()
    num_batches, (mean, inverse_std, scale, shift) = torch.tensor(4), torch.zeros(4, channels)
    Launch(
        batch_statistics,
        (channels // 2,),
        {
            "sums_ptr": sums,
            "weight_ptr": norm.weight.detach().float(),
            "bias_ptr": norm.bias.detach().float(),
            "running_mean_ptr": running_mean,
            "running_var_ptr": running_var,
            "num_batches_ptr": num_batches,
            "mean_ptr": mean,
            "inverse_std_ptr": inverse_std,
            "scale_ptr": scale,
            "shift_ptr": shift,
            "num_tiles": len(tiles),
            "num_pixels": len(pixels),
            "momentum": norm.momentum,
            "eps": norm.eps,
            "TILE": tile,
            "CHANNELS": channels,
            "GROUP": 2,
            "CHUNK": 16,
            "CHUNKS": 3,
        },
    )()
    expected = norm(pixels.double()).detach()
    assert error(pixels.double() * scale.double() + shift.double(), expected) < 20 * FLOAT32
    assert error((pixels - mean) * inverse_std * norm.weight.detach() + norm.bias.detach(), expected) < 20 * FLOAT32
    assert error(running_mean, norm.running_mean) < FLOAT32
    assert error(running_var, norm.running_var) < FLOAT32
    assert int(num_batches) == 5


def test_normalization_by_running_statistics():
    channels = 16
    norm = torch.nn.BatchNorm1d(channels, eps=1e-3).eval()
    norm.weight.data, norm.bias.data, norm.running_mean = randn(3, channels)
    norm.running_var = randn(channels, seed=1).abs()
    scale, shift = torch.zeros(2, channels)
    Launch(
        running_normalization,
        (1,),
        {
            "weight_ptr": norm.weight,
            "bias_ptr": norm.bias,
            "running_mean_ptr": norm.running_mean,
            "running_var_ptr": norm.running_var,
            "scale_ptr": scale,
            "shift_ptr": shift,
            "eps": norm.eps,
            "CHANNELS": channels,
        },
    )()
    x = randn(9, channels, seed=2)
    assert error(x * scale + shift, norm.double()(x.double()).detach()) < FLOAT32


def test_gradients_of_batch_normalization():
    tile, channels = 8, 4
    x, gradient = randn(40 * tile - 3, channels).double().requires_grad_(), randn(40 * tile - 3, channels, seed=1)
    norm = torch.nn.BatchNorm1d(channels).double()
    norm.weight.data = randn(channels, seed=2).double()
    norm(x).backward(gradient.double())
    mean, inverse_std = x.detach().mean(0), (x.detach().var(0, correction=0) + norm.eps).rsqrt()
    products = gradient * (x.detach() - mean) * inverse_std
    sums = torch.stack(
        [torch.stack([each.sum(0) for each in tiles_of(pixels, tile)], dim=1) for pixels in (gradient, products)]
    ).float()
    weight_gradient, bias_gradient, a, b, c = torch.zeros(5, channels)
    Launch(
        batch_gradients,
        (channels // 2,),
        {
            "sums_ptr": sums,
            "weight_ptr": norm.weight.detach().float(),
            "mean_ptr": mean.float(),
            "inverse_std_ptr": inverse_std.float(),
            "weight_gradient_ptr": weight_gradient,
            "bias_gradient_ptr": bias_gradient,
            "a_ptr": a,
            "b_ptr": b,
            "c_ptr": c,
            "num_tiles": sums.shape[-1],
            "num_pixels": len(x),
            "CHANNELS": channels,
            "GROUP": 2,
            "CHUNK": 16,
            "CHUNKS": 3,
        },
    )()
    assert error(weight_gradient, norm.weight.grad) < FLOAT32
    assert error(bias_gradient, norm.bias.grad) < FLOAT32
    assert error(a * gradient + b * x.detach() + c, x.grad) < FLOAT32


@pytest.mark.parametrize("shortcut_channels", [0, 32, 16])
def test_residual_sum(shortcut_channels):
    channels, size = 32, 6
    output, (scale, shift) = randn(B, size, size, channels), randn(2, channels, seed=1)
    expected = planes(output.double() * scale + shift)
    shortcut = None
    if shortcut_channels == channels:
        shortcut = randn(*output.shape, seed=2)
        expected = expected + planes(shortcut)
    elif shortcut_channels:
        shortcut = randn(B, 2 * size, 2 * size, shortcut_channels, seed=2)
        expected = expected + PadShortcut(shortcut_channels, channels, 2)(planes(shortcut))
    values = torch.full_like(output, 7.0)
    Launch(
        residual_sum,
        (ceil_div(B * size**2, TILES[channels]),),
        {
            "output_ptr": output,
            "scale_ptr": scale,
            "shift_ptr": shift,
            "shortcut_ptr": shortcut,
            "values_ptr": values,
            "num_pixels": B * size**2,
            "SIZE": size,
            "CHANNELS": channels,
            "SHORTCUT_CHANNELS": shortcut_channels,
            "TILE": TILES[channels],
        },
    )()
    assert error(values, maps(relu(expected))) < FLOAT32


def test_gradient_of_pooling():
    channels, size = 64, 3
    output, values, gradient = (randn(B, size, size, channels, seed=seed) for seed in (0, 1, 2))
    values = relu(values)
    pooled_gradient, (mean, inverse_std) = randn(B, channels, seed=3), randn(2, channels, seed=4)
    sums = torch.full((2, channels, 1), 7.0)
    Launch(
        pool_gradient,
        (1,),
        {
            "pooled_gradient_ptr": pooled_gradient,
            "values_ptr": values,
            "output_ptr": output,
            "mean_ptr": mean,
            "inverse_std_ptr": inverse_std,
            "gradient_ptr": gradient,
            "sums_ptr": sums,
            "num_pixels": B * size**2,
            "SIZE": size,
            "CHANNELS": channels,
            "TILE": TILES[channels],
        },
    )()
    expected = pooled_gradient.double()[:, None, None] / size**2 * (values > 0)
    assert error(gradient, expected) < FLOAT32
    assert error(sums[0, :, 0], expected.sum((0, 1, 2))) < FLOAT32
    assert error(sums[1, :, 0], (expected * (output - mean) * inverse_std).sum((0, 1, 2))) < 10 * FLOAT32
