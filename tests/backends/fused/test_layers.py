import ctypes

import pytest
import torch
import torch.nn.functional as F
from fused_variants import ROUNDING, SUMMING, VARIANTS, error

from deepres.backends.fused.build import SIZES, Input, Layer, load_kernels

SHAPES = [(16, 16, 1), (16, 32, 1), (32, 32, 2), (32, 64, 2), (64, 64, 4)]  # channels in and out, image size / size
LAYERS = [(*shape, kind) for shape in SHAPES for kind in (None, "identity", "subsampled")]
LAYERS = [layer for layer in LAYERS if layer[0] != 16 or layer[3] != "subsampled"]  # nothing is before the first stage
CASES = [
    pytest.param(*variant.values, size, marks=variant.marks)
    for variant in VARIANTS
    for size in SIZES
    if size == 32 or "narrow" not in variant.values  # test_neon.py compares another size, and compiling takes seconds
]


@pytest.mark.parametrize(("precision", "unit", "image_size"), CASES)
@pytest.mark.parametrize(("in_channels", "out_channels", "shrinkage", "shortcut_kind"), LAYERS)
def test_a_layer_agrees_with_autograd(
    precision, unit, image_size, in_channels, out_channels, shrinkage, shortcut_kind
):
    library, dtype = load_kernels(precision, image_size, unit), getattr(torch, precision)
    # A chunk of two images; the slow twin gets fewer where its weight gradient takes one image at a time anyway.
    num_images = 2 if unit == "scalar" and out_channels == 16 else 9
    size = image_size // shrinkage
    out_size = size * in_channels // out_channels
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    def stored(tensor):
        """As activations are stored: rounded, channels last."""
        return tensor.permute(0, 2, 3, 1).contiguous().to(dtype)

    def as_double(tensor):
        return tensor.permute(0, 3, 1, 2).double()

    weight, scale, shift = random(out_channels, in_channels, 3, 3) * 0.1, random(in_channels), random(in_channels)
    norm_weight = random(out_channels)
    raw = stored(random(num_images, in_channels, size, size))
    output = torch.zeros(num_images, out_size, out_size, out_channels, dtype=dtype)
    grad, input_grad = torch.zeros_like(output), torch.zeros_like(raw)
    grad.copy_(random(*grad.shape))
    previous_sums, sums = torch.zeros(num_images, 2, in_channels), torch.zeros(num_images, 2, out_channels)
    packed = torch.zeros(2, library.packed_size(in_channels, out_channels), dtype=dtype)
    vectors = torch.zeros(12, out_channels)
    weight_grad, chunk_grads = torch.zeros_like(weight), torch.zeros(library.chunk_grads_size())
    tracked = torch.zeros((), dtype=torch.int64)

    shortcut, added = None, torch.zeros(())
    if shortcut_kind == "identity":
        shortcut = stored(random(num_images, in_channels, size, size))
        added = as_double(shortcut)
    elif shortcut_kind == "subsampled":
        shortcut = stored(random(num_images, in_channels // 2, 2 * size, 2 * size))
        added = F.pad(as_double(shortcut)[:, :, ::2, ::2], (0, 0, 0, 0, 0, in_channels // 2))
    values = None if shortcut is None else torch.zeros_like(raw)

    previous = Layer(
        output=raw.data_ptr(), sums=previous_sums.data_ptr(), scale=scale.data_ptr(), shift=shift.data_ptr()
    )
    names = "norm_bias norm_weight_grad norm_bias_grad running_mean running_var scale shift mean inverse_std a b c"
    layer = Layer(
        in_channels=in_channels,
        out_channels=out_channels,
        input=Input(
            ctypes.addressof(previous),
            None if shortcut is None else shortcut.data_ptr(),
            0 if shortcut is None else shortcut.shape[3],
            None if values is None else values.data_ptr(),
        ),
        output=output.data_ptr(),
        forward_weight=packed[0].data_ptr(),
        backward_weight=packed[1].data_ptr(),
        sums=sums.data_ptr(),
        weight=weight.data_ptr(),
        norm_weight=norm_weight.data_ptr(),
        weight_grad=weight_grad.data_ptr(),
        num_batches_tracked=tracked.data_ptr(),
        eps=1e-5,
        momentum=0.1,
        **{name: vector.data_ptr() for name, vector in zip(names.split(), vectors, strict=True)},
    )
    address = ctypes.addressof(layer)
    library.pack_weights((ctypes.c_void_p * 1)(address), 1, 1)
    library.layer_forward(address, num_images, True, 1)

    # The input, from what is stored.
    x = as_double(raw) * scale.double()[:, None, None] + shift.double()[:, None, None] + added
    x = x.relu()
    if values is not None:
        assert error(as_double(values), x) < ROUNDING[precision]
        x = as_double(values)
    else:
        x = as_double(stored(x))
    # The convolution and the sums for the statistics.
    x.requires_grad_()
    w = weight.to(dtype).double().requires_grad_()
    y = F.conv2d(x, w, stride=size // out_size, padding=1)
    assert error(as_double(output), y) < ROUNDING[precision]
    assert error(sums[:, 0], y.sum((2, 3))) < SUMMING
    assert error(sums[:, 1], (y * y).sum((2, 3))) < SUMMING

    # Backward: through batch normalisation's affine form, convolution, shortcut and ReLU.
    g = as_double(grad)
    sums[:, 0], sums[:, 1] = g.sum((2, 3)), (g * as_double(output)).sum((2, 3))
    shortcut_grad = torch.zeros_like(output).copy_(random(*output.shape))
    library.layer_backward(
        address,
        num_images,
        grad.data_ptr(),
        shortcut_grad.data_ptr(),
        input_grad.data_ptr(),
        chunk_grads.data_ptr(),
        1,
    )
    a, b, c = (vector.double()[:, None, None] for vector in vectors[-3:])
    output_grad = as_double(stored(g * a + as_double(output) * b + c))
    x_grad, w_grad = torch.autograd.grad(y, (x, w), output_grad)
    x_grad[:, :, :: size // out_size, :: size // out_size] += as_double(shortcut_grad)[:, :in_channels]
    x_grad *= x > 0
    # Single values that lie between two numbers of bfloat16 may be rounded either way, in either computation.
    tolerance = SUMMING if precision == "float32" else 1e-3
    assert error(weight_grad, w_grad) < tolerance
    assert error(as_double(input_grad), x_grad) < ROUNDING[precision]
    assert error(previous_sums[:, 0], x_grad.sum((2, 3))) < tolerance
    assert error(previous_sums[:, 1], (x_grad * as_double(raw)).sum((2, 3))) < tolerance
