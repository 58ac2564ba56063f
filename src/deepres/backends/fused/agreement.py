"""Compares the kernels with the net that they stand for, before they train it.

Eight images, forward and backward, once in the kernels and once by the net's own `forward` in float32: every gradient,
the running statistics that the step leaves, and the logits in evaluation mode.

The parameters are replaced meanwhile, so that the effect of rounding depends neither on the training so far nor much
on the depth: by He's weights, and shifts of batch normalisation near 2, which keep most ReLUs open. With the weights
that nets begin with, a rounding error that puts one ReLU on the other side of zero grows from layer to layer: in a
plain net of 110 layers the gradients of two float32 computations have nothing in common. With open ReLUs the effect of
rounding stays small, and a ReLU that is something else still shows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.backends.device import autocast
from deepres.backends.fused.net import FusedNet
from deepres.backends.torch_backend import Backend
from deepres.models import ResNet

NUM_IMAGES = 8
SCALES, SHIFTS, BIASES = (0.75, 1.25), (0.5, 3.5), (-1.0, 1.0)  # between which they are drawn
# The largest relative errors (of norms, a tensor each) measured on plain and residual nets of 20 to 110 layers and on
# images of 16, 24 and 32 rows are, in float32, 6e-6 in batch statistics, 4e-7 in logits and 0.07 in gradients; in
# bfloat16 4e-3, 4e-3, and 0.6 of the tolerance below. SiLU in the place of ReLU makes 0.1 in batch statistics, a slope
# of 0.1 below zero 0.02, ReLU6 0.016; a gradient that is doubled or missing makes 1.
FORWARD_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.01}
GRADIENT_TOLERANCE = 0.25
# In bfloat16 a gradient may be off by that and this many times what torch's own bfloat16 makes of it, or of the median
# gradient where that is more: gradients of early layers nearly cancel, and are compared only roughly.
AUTOCAST_FACTOR = 6.0


def disagreement(
    model: ResNet,
    precision: str,
    examples: Sequence[tuple[Tensor, Tensor]],
    build: Callable[[ResNet, str, int], Backend] = FusedNet,
) -> str | None:
    """Return where the kernels and the net itself differ by more than rounding, or None.

    Weights, statistics, gradients, modes and the state of torch's generator are afterwards what they were.

    Args:
        model: standard, as `deepres.backends.fused.standard` has it.
        precision: the kernels'.
        examples: `NUM_IMAGES` images as they are trained on, and their labels, a pair for each size of image.
        build: makes the kernels' net of model, precision and capacity.

    Raises:
        KernelsUnavailable: there are none.
    """
    net = build(model, precision, max(len(labels) for _, labels in examples))
    with _left_as_it_was(model), torch.random.fork_rng(devices=[]):
        _draw_parameters(model)
        for images, labels in examples:
            own = _own_outcome(model, images, labels, "float32")
            with torch.no_grad():
                expected = {**own, "logits": model.eval()(images)}
            found = _kernels_outcome(net, model, images, labels)
            allowed = dict.fromkeys(expected, FORWARD_TOLERANCE[precision])
            allowed |= dict.fromkeys(dict(model.named_parameters()), GRADIENT_TOLERANCE)
            if precision != "float32":
                rounded = _own_outcome(model, images, labels, precision)
                unavoidable = {key: _error(rounded[key], own[key]) for key, _ in model.named_parameters()}
                typical = median(unavoidable.values())
                for key, error in unavoidable.items():
                    allowed[key] += AUTOCAST_FACTOR * max(error, typical)
            for key, value in expected.items():
                # Means are small where they cancel, and matter beside the deviation alone.
                variance = (
                    own.get(key.replace("running_mean", "running_var")) if key.endswith("running_mean") else None
                )
                error = _error(found[key], value, None if variance is None else variance.sqrt())
                if not error <= allowed[key]:  # nor a number
                    size = images.shape[-1]
                    return (
                        f"on {len(images)} images of {size} x {size} they differ from the net itself by {error:.2g} "
                        f"of {key}, where rounding makes {allowed[key]:.2g} at most"
                    )
    return None


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, mode in modes:
            module.training = mode


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def _draw_parameters(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            bound = (6 / parameter[0].numel()) ** 0.5  # He's variance, 2 / fan-in
            _draw(parameter, (-bound, bound), generator)
        else:
            _draw(parameter, BIASES, generator)
    for norm in _norms(model):
        _draw(norm.weight, SCALES, generator)
        _draw(norm.bias, SHIFTS, generator)


def _draw(parameter: Tensor, bounds: tuple[float, float], generator: torch.Generator) -> None:
    """Draw values between bounds on the CPU, so that every device has the same."""
    parameter.copy_(torch.empty(parameter.shape).uniform_(*bounds, generator=generator))


@torch.no_grad()
def _forget_statistics(model: nn.Module) -> None:
    for norm in _norms(model):
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.zero_()


@torch.no_grad()
def _statistics(model: nn.Module) -> Mapping[str, Tensor]:
    """Make the running statistics after a step, begun at zero, those of its images alone; return copies."""
    for norm in _norms(model):
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.div_(norm.momentum or 1.0)
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _own_outcome(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Mapping[str, Tensor]:
    """Return the batch statistics and gradients that autograd makes."""
    _forget_statistics(model)
    model.train()
    with torch.enable_grad():
        with autocast(images.device, precision):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return {**_statistics(model), **dict(zip(names, grads, strict=True))}


def _kernels_outcome(net: Backend, model: nn.Module, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    """Return what the kernels make; at the beginning the model holds the net's own batch statistics."""
    logits = net.logits(images)
    _forget_statistics(model)
    net.forward_backward(images, labels)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**_statistics(model), **grads, "logits": logits}


def _error(found: Tensor, expected: Tensor, unit: Tensor | None = None) -> float:
    """Return the norm of the difference in units of the expected norm, or of another one that is larger."""
    norms = [float(tensor.norm()) for tensor in (expected, unit) if tensor is not None]
    return float((found - expected).norm()) / max(*norms, 1e-30)
