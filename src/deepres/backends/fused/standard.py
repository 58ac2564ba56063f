"""Which nets the kernels compute: the plain and option A nets of `deepres.models`, exactly as they are written there.

The kernels never call a net's `forward`: they compute from its parameters what they were written for. So whatever else
could change what a net computes, or what reads along, makes it another net, which is trained the plain way.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import pairwise
from threading import Lock
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from deepres.models import ResNet
from deepres.models.blocks import Block, PadShortcut
from deepres.models.resnet import WIDTHS

# What the kernels were written for: `source_digest` of each method that takes part in a forward pass. Whoever changes
# one of these methods changes the kernels, or leaves the digest alone and trains without them.
FORWARDS: dict[tuple[type[nn.Module], str], str] = {
    (ResNet, "forward"): "e6a25bbbc375f0af",
    (ResNet, "forward_features"): "7fbbd3837d20bcb5",
    (Block, "forward"): "b15ba5c4f9bd0690",
    (PadShortcut, "forward"): "2f3b9c96814b1b80",
}
FREE = ("training", "_parameters", "_buffers", "_modules")  # attributes compared by themselves, or of no consequence
NORM_SETTINGS = ("eps", "momentum")  # the kernels take any number
ONE_PARSES = Lock()  # two threads that parse at once may fail: CPython issue 106905


def why_not_standard(model: nn.Module, device_type: str = "cpu") -> str | None:
    """Return what makes a net another one than the kernels for a type of device were written for, or None."""
    if type(model) is not ResNet:
        return f"there are no kernels for a {type(model).__name__}"
    if model.residual and model.option != "A":
        return f"there are no kernels for shortcut option {model.option}"
    for (owner, name), digest in FORWARDS.items():
        if source_digest(getattr(owner, name)) != digest:
            return f"{owner.__name__}.{name} is not the one that the kernels were written for"
    return next(_differences(model, device_type), None)


def source_digest(function: Callable[..., Any]) -> str | None:
    """Return a digest of a function's source without comments, docstring and layout; None where there is no source."""
    if not isinstance(function, FunctionType):
        return None
    try:
        source = inspect.getsource(function.__code__)  # not of what a decorator wraps
        with ONE_PARSES:
            (definition,) = ast.parse(textwrap.dedent(source)).body
    except (OSError, SyntaxError, TypeError, ValueError):
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    if ast.get_docstring(definition) is not None:
        del definition.body[0]
    return sha256(ast.unparse(definition).encode()).hexdigest()[:16]


def _differences(model: ResNet, device_type: str) -> Iterator[str]:
    """Yield in which ways a net is not the standard one of its depth."""
    found = dict(model.named_modules(remove_duplicate=False))
    num_blocks = sum(name.startswith("layer1.") and name.count(".") == 1 for name in found)
    with torch.device("meta"):
        expected = dict(_standard_modules(num_blocks, model.residual))
    if unknown := [name for name in found if name not in expected]:
        yield f"there are no kernels for its module {unknown[0]!r}"
    if missing := [name for name in expected if name not in found]:
        yield f"it has no module {missing[0]!r}"
    if list(found) != list(expected):
        yield "its modules are in another order"
    for name, (kind, reference) in expected.items():
        yield from _module_differences(name or "the net", found[name], kind, reference)
    if model.training and not all(module.training for module in model.modules()):
        yield "a part of it is in evaluation mode"
    references = {name: reference for name, (_, reference) in expected.items()}
    yield from _tensor_differences(model, references, device_type)


def _standard_modules(num_blocks: int, residual: bool) -> Iterator[tuple[str, tuple[type[nn.Module], nn.Module]]]:
    """Yield name, type, and a module with the expected attributes and tensors, in the order of `named_modules`."""

    def own(**attributes: object) -> nn.Module:
        module = nn.Module()
        vars(module).update(attributes)
        return module

    def conv(in_channels: int, out_channels: int, stride: int = 1) -> tuple[type[nn.Module], nn.Module]:
        return nn.Conv2d, nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def norm(channels: int) -> tuple[type[nn.Module], nn.Module]:
        return nn.BatchNorm2d, nn.BatchNorm2d(channels)

    yield "", (ResNet, own())
    yield "conv1", conv(3, WIDTHS[0])
    yield "bn1", norm(WIDTHS[0])
    channels = WIDTHS[0]
    for stage, width in enumerate(WIDTHS, start=1):
        yield f"layer{stage}", (nn.Sequential, own())
        for block in range(num_blocks):
            name, stride = f"layer{stage}.{block}", 1 if channels == width else 2
            yield name, (Block, own() if residual else own(shortcut=None))
            yield f"{name}.conv1", conv(channels, width, stride)
            yield f"{name}.bn1", norm(width)
            yield f"{name}.conv2", conv(width, width)
            yield f"{name}.bn2", norm(width)
            if residual and stride == 1:
                yield f"{name}.shortcut", (nn.Identity, nn.Identity())
            elif residual:
                yield f"{name}.shortcut", (PadShortcut, own(extra_channels=width - channels, stride=stride))
            channels = width
    yield "fc", (nn.Linear, nn.Linear(WIDTHS[-1], 1))  # any number of classes


def _module_differences(name: str, module: nn.Module, kind: type[nn.Module], reference: nn.Module) -> Iterator[str]:
    """Compare a module's type and attributes, its hooks among them; attributes of the user's own do no harm."""
    if type(module) is not kind:
        yield f"there are no kernels for a {type(module).__name__} as {name}"
        return
    found, expected = vars(module), vars(reference)
    for key, value in expected.items():
        if key in FREE or (key == "out_features" and name == "fc"):
            continue
        if key in NORM_SETTINGS and type(found.get(key)) is float:
            continue
        if key not in found or found[key] != value:
            yield f"{name} has hooks" if "hooks" in key else f"{name} has not {key} = {value!r}"
    for key in found.keys() - expected.keys():
        if hasattr(kind, key):
            yield f"{name} has its own {key}"


def _tensor_differences(model: nn.Module, expected: dict[str, nn.Module], device_type: str) -> Iterator[str]:
    """Compare parameters and buffers: names, types, shapes, and that each has memory of its own."""
    references = {
        f"{name}.{key}" if name else key: tensor
        for name, module in expected.items()
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    found: dict[str, Tensor] = {**parameters, **buffers}
    if other := sorted(found.keys() ^ references.keys()):
        yield f"there are no kernels for a net {'with' if other[0] in found else 'without'} {other[0]}"
        return
    for name, tensor in found.items():
        reference = references[name]
        shape = (tensor.shape[0], *reference.shape[1:]) if name.startswith("fc.") and tensor.dim() else reference.shape
        if type(tensor) is not (nn.Parameter if name in parameters else Tensor):
            yield f"{name} is a {type(tensor).__name__}"
        if tensor.dtype != reference.dtype:
            yield f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type != device_type or tensor.layout != torch.strided:
            yield f"{name} is on {tensor.device.type}, {tensor.layout}"
            return
        if tensor.shape != shape:
            yield f"{name} has shape {tuple(tensor.shape)}"
        if name in parameters and not tensor.requires_grad:
            yield f"{name} is frozen"
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            yield f"{name} has hooks"
        if not (
            tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
        ):
            yield f"{name} is not contiguous"
    if model.get_parameter("fc.weight").shape[0] != model.get_parameter("fc.bias").shape[0]:
        yield "fc.weight and fc.bias are of different numbers of classes"
    places = sorted((tensor.data_ptr(), tensor.nbytes, name) for name, tensor in found.items())
    for (start, num_bytes, name), (following, _, other_name) in pairwise(places):
        if start + num_bytes > following:
            yield f"{name} and {other_name} share memory"
