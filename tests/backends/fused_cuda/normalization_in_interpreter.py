"""Every kernel of `deepres.backends.fused_cuda.normalization` against torch in float64, in Triton's interpreter.

`test_interpreter.py` runs these tests in a process of their own. Numbers of pixels fill no whole tiles.
"""

import pytest
import torch
from exact_bfloat16 import exact_bfloat16  # noqa: F401 (a fixture)
from kernel_checks import DTYPES, FLOAT32, STORED, B, error, maps, planes, randn, relu, stored, tiles_of

from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.layer import TILES, ceil_div
from deepres.backends.fused_cuda.normalization import (
    batch_gradients,
    batch_statistics,
    output_gradient,
    pool_gradient,
    residual_sum,
    running_normalization,
)
from deepres.models.blocks import PadShortcut


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shortcut_channels", [0, 32, 16])
def test_residual_sum(shortcut_channels, dtype):
    channels, size = 32, 6
    output, (scale, shift) = randn(B, size, size, channels, dtype=dtype), randn(2, channels, seed=1)
    expected = planes(output.double() * scale + shift)
    shortcut = None
    if shortcut_channels == channels:
        shortcut = randn(*output.shape, seed=2, dtype=dtype)
        expected = expected + planes(shortcut)
    elif shortcut_channels:
        shortcut = randn(B, 2 * size, 2 * size, shortcut_channels, seed=2, dtype=dtype)
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
    assert error(values, stored(maps(relu(expected)), dtype)) < STORED[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_passes_relu(dtype):
    channels, num_pixels = 16, 9
    output, values = randn(1, 3, 3, channels, dtype=dtype), torch.zeros(1, 3, 3, channels, dtype=dtype)
    output[0, 1, 2, 5] = float("nan")
    Launch(
        residual_sum,
        (1,),
        {
            "output_ptr": output,
            "scale_ptr": torch.ones(channels),
            "shift_ptr": torch.zeros(channels),
            "shortcut_ptr": None,
            "values_ptr": values,
            "num_pixels": num_pixels,
            "SIZE": 3,
            "CHANNELS": channels,
            "SHORTCUT_CHANNELS": 0,
            "TILE": TILES[channels],
        },
    )()
    assert values.isnan().nonzero().tolist() == [[0, 1, 2, 5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_the_output(dtype):
    channels = 32
    gradient, output = (randn(B, 6, 6, channels, seed=seed, dtype=dtype) for seed in (1, 2))
    (a, b, c), found = randn(3, channels, seed=3), torch.full_like(output, 7.0)
    Launch(
        output_gradient,
        (ceil_div(B * 36, TILES[channels]),),
        {
            "gradient_ptr": gradient,
            "output_ptr": output,
            "a_ptr": a,
            "b_ptr": b,
            "c_ptr": c,
            "output_gradient_ptr": found,
            "num_pixels": B * 36,
            "CHANNELS": channels,
            "TILE": TILES[channels],
        },
    )()
    expected = a.double() * gradient + b.double() * output + c.double()
    assert error(found, stored(expected, dtype)) < STORED[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_pooling(dtype):
    channels, size = 64, 3
    output, values, gradient = (randn(B, size, size, channels, seed=seed, dtype=dtype) for seed in (0, 1, 2))
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
    assert error(gradient, stored(expected, dtype)) < STORED[dtype]
    assert error(sums[0, :, 0], expected.sum((0, 1, 2))) < FLOAT32
    assert error(sums[1, :, 0], (expected * (output - mean) * inverse_std).sum((0, 1, 2))) < 10 * FLOAT32
