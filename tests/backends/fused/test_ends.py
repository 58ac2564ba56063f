"""The two ends of a net in the kernels: images and the first layer, and what follows the convolutions."""

import ctypes

import pytest
import torch
import torch.nn.functional as F
from fused_variants import ROUNDING, SUMMING, VARIANTS, batch, error, make_model, needs_float32, parameter

from deepres.backends.fused.build import Input, Layer, load_kernels
from deepres.backends.fused.net import FusedNet

# Batch statistics come from float32 sums of x and x * x over an image, so that rounding moves a variance by up to this
# part of the mean's square: a deviation of a hundredth of the mean is still right to a percent.
VARIANCE_ROUNDING = 2e-6


def first_layer(library, dtype, images, weight, grad, sums):
    """Runs forward and, from the gradient `grad` of its normalised output and its `sums`, backward."""
    num_images, size = len(images), images.shape[-1]
    values = torch.zeros(num_images, size, size, 4, dtype=dtype)
    library.load_images(num_images, images.data_ptr(), *images.stride(), values.data_ptr(), 1)
    output = torch.zeros(num_images, size, size, 16, dtype=dtype)
    packed = torch.zeros(library.packed_size(3, 16), dtype=dtype)
    found = torch.zeros(num_images, 2, 16)
    names = "norm_bias norm_weight_grad norm_bias_grad running_mean running_var scale shift mean inverse_std a b c"
    vectors = {name: torch.zeros(16) for name in names.split()}
    norm_weight, weight_grad = torch.linspace(0.5, 1.5, 16), torch.zeros_like(weight)
    tracked, chunk_grads = torch.zeros((), dtype=torch.int64), torch.zeros(library.chunk_grads_size())
    layer = Layer(
        in_channels=3,
        out_channels=16,
        input=Input(None, None, 0, values.data_ptr()),
        output=output.data_ptr(),
        forward_weight=packed.data_ptr(),
        sums=found.data_ptr(),
        weight=weight.data_ptr(),
        norm_weight=norm_weight.data_ptr(),
        weight_grad=weight_grad.data_ptr(),
        num_batches_tracked=tracked.data_ptr(),
        eps=1e-5,
        momentum=1.0,
        **{name: vector.data_ptr() for name, vector in vectors.items()},
    )
    address = ctypes.addressof(layer)
    library.pack_weights((ctypes.c_void_p * 1)(address), 1, 1)
    library.layer_forward(address, num_images, True, 1)
    forward_sums = found.clone()
    found.copy_(sums(output))
    library.layer_backward(address, num_images, grad.data_ptr(), None, None, chunk_grads.data_ptr(), 1)
    return values, output, forward_sums, vectors, weight_grad


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
@pytest.mark.parametrize("num_images", [1, 9])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_first_layer_agrees_with_autograd(precision, unit, num_images, offset):
    library, dtype, size = load_kernels(precision, 32, unit), getattr(torch, precision), 32
    generator = torch.Generator().manual_seed(3)
    images = (torch.randn(num_images, 3, size, size, generator=generator) + offset).to(
        memory_format=torch.channels_last
    )
    weight = torch.randn(16, 3, 3, 3, generator=generator) * 0.2
    grad = torch.randn(num_images, size, size, 16, generator=generator).to(dtype)

    def sums(output):
        return torch.stack([grad.double().sum((1, 2)), (grad.double() * output.double()).sum((1, 2))], 1).float()

    values, output, forward_sums, vectors, weight_grad = first_layer(library, dtype, images, weight, grad, sums)
    x = values.permute(0, 3, 1, 2).double()[:, :3]
    assert error(x, images) < ROUNDING[precision]
    assert not values[..., 3].any()
    w = weight.to(dtype).double().requires_grad_()
    y = F.conv2d(x, w, padding=1)
    assert error(output.permute(0, 3, 1, 2), y) < ROUNDING[precision]
    assert error(forward_sums[:, 0], y.sum((2, 3))) < SUMMING
    assert error(forward_sums[:, 1], (y * y).sum((2, 3))) < SUMMING
    var, mean = torch.var_mean(y.detach(), (0, 2, 3))
    assert error(vectors["running_mean"], mean) < SUMMING
    assert ((vectors["running_var"] - var).abs() <= 1e-5 * var + VARIANCE_ROUNDING * mean**2).all()

    a, b, c = (vectors[name].double() for name in "abc")
    output_grad = (grad.double() * a + output.double() * b + c).to(dtype).double().permute(0, 3, 1, 2)
    (w_grad,) = torch.autograd.grad(y, w, output_grad)
    # Sums of terms that cancel, the more the farther the images' mean is from zero.
    terms = float(F.conv2d(x.abs().transpose(0, 1), output_grad.abs().transpose(0, 1), padding=1).norm())
    tolerance = SUMMING if precision == "float32" else 1e-3
    assert float((weight_grad.double() - w_grad).norm()) < tolerance * max(float(w_grad.norm()), 0.1 * terms)


@needs_float32
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.03])
def test_a_variance_far_below_the_mean_is_as_exact_as_is_said(spread):
    library, size = load_kernels("float32"), 32
    generator = torch.Generator().manual_seed(4)
    images = 10 + spread * torch.randn(8, 3, size, size, generator=generator)
    weight = torch.zeros(16, 3, 3, 3)
    weight[:, 0, 1, 1] = 1.0  # each output channel is the first of the images': mean 10
    grad, no_sums = torch.zeros(8, size, size, 16), torch.zeros(8, 2, 16)
    *_, vectors, _ = first_layer(library, torch.float32, images, weight, grad, lambda output: no_sums)
    var, mean = torch.var_mean(images[:, 0].double())
    assert float((vectors["running_mean"] - mean).abs().max()) < 1e-5
    assert float((vectors["running_var"] - var).abs().max()) <= 1e-5 * var + VARIANCE_ROUNDING * mean**2


@pytest.mark.parametrize("precision", [parameter("float32"), parameter("bfloat16")])
@pytest.mark.parametrize("shortcut_channels", [0, 32, 64])
def test_pooling_agrees_with_autograd(precision, shortcut_channels):
    library, dtype, num_images, size = load_kernels(precision), getattr(torch, precision), 5, 8
    generator = torch.Generator().manual_seed(5)
    raw = torch.randn(num_images, size, size, 64, generator=generator).to(dtype)
    scale, shift = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    pooled_grad = torch.randn(num_images, 64, generator=generator)
    factor = 2 if shortcut_channels == 32 else 1
    shortcut = torch.randn(num_images, factor * size, factor * size, max(shortcut_channels, 1), generator=generator)
    shortcut = shortcut.to(dtype)
    values, g = torch.zeros_like(raw), torch.zeros_like(raw)
    sums, pooled = torch.zeros(num_images, 2, 64), torch.zeros(num_images, 64)
    previous = Layer(output=raw.data_ptr(), sums=sums.data_ptr(), scale=scale.data_ptr(), shift=shift.data_ptr())
    source = Input(
        ctypes.addressof(previous),
        shortcut.data_ptr() if shortcut_channels else None,
        shortcut_channels,
        values.data_ptr(),
    )
    library.pool_forward(ctypes.addressof(source), num_images, pooled.data_ptr(), 1)
    library.pool_backward(ctypes.addressof(source), num_images, pooled_grad.data_ptr(), g.data_ptr(), 1)

    x = raw.double() * scale.double() + shift.double()
    if shortcut_channels:
        x[..., :shortcut_channels] += shortcut.double()[:, ::factor, ::factor]
    x = x.relu().requires_grad_()
    mean = x.mean((1, 2))
    assert error(values, x) < ROUNDING[precision]
    assert error(pooled, mean) < SUMMING
    (expected,) = torch.autograd.grad(mean, x, pooled_grad.double())
    expected = expected * (x > 0)
    assert error(g, expected) < ROUNDING[precision]
    assert error(sums[:, 0], expected.sum((1, 2))) < SUMMING
    assert error(sums[:, 1], (expected * raw.double()).sum((1, 2))) < SUMMING


@needs_float32
@pytest.mark.parametrize(("num_images", "num_classes"), [(1, 1), (1, 10), (7, 13), (33, 100)])
def test_linear_layer_and_cross_entropy_agree_with_autograd(num_images, num_classes):
    library, generator = load_kernels("float32"), torch.Generator().manual_seed(6)
    pooled, weight = (
        torch.randn(num_images, 64, generator=generator),
        torch.randn(num_classes, 64, generator=generator),
    )
    bias = torch.randn(num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    logits, loss = torch.zeros(num_images, num_classes), torch.zeros(())
    weight_grad, bias_grad, pooled_grad = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(pooled)
    of_linear = [tensor.data_ptr() for tensor in (pooled, weight, bias, logits)]
    library.linear_forward(num_images, num_classes, *of_linear, 1)
    found = logits.clone()
    wrong = library.cross_entropy(num_images, num_classes, logits.data_ptr(), labels.data_ptr(), loss.data_ptr())
    of_grads = [t.data_ptr() for t in (logits, pooled, weight, weight_grad, bias_grad, pooled_grad)]
    library.linear_backward(num_images, num_classes, *of_grads, 1)

    inputs = [tensor.double().requires_grad_() for tensor in (pooled, weight, bias)]
    expected = F.linear(*inputs)
    expected_loss = F.cross_entropy(expected, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    assert wrong == int((expected.argmax(1) != labels).sum())
    for grad, exact in zip(
        (pooled_grad, weight_grad, bias_grad), torch.autograd.grad(expected_loss, inputs), strict=True
    ):
        torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_in_an_image_shows_in_its_logits_alone(precision, unit, value):
    net, (images, labels) = FusedNet(make_model("resnet20"), precision, 3, unit), batch(3)
    expected = net.logits(images)
    images[1, 0, 5, 5] = value
    found = net.logits(images)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert not found[1].isfinite().any()
    loss, _ = net.forward_backward(images, labels)
    assert not loss.isfinite()
