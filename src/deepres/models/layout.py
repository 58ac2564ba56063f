"""The layers of a net in the order in which they compute, read off the model object, for the architecture figure."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.models.blocks import PadShortcut


@dataclass(frozen=True)
class Layer:
    """One layer, or the pooling before the last."""

    kind: str
    """"conv", "pool" or "fc"."""
    channels: int
    """The channels of its output."""
    size: int
    """Pixels on each side of its output; 1 behind the pooling."""
    kernel: int = 0
    """Pixels on each side, of a convolution."""
    stride: int = 1
    """The stride of a convolution."""

    def __str__(self) -> str:
        """Write it as figure 3 does."""
        if self.kind == "conv":
            return f"{self.kernel}x{self.kernel} conv, {self.channels}" + (
                f", /{self.stride}" if self.stride > 1 else ""
            )
        return "global average pool" if self.kind == "pool" else f"fc, {self.channels}"


@dataclass(frozen=True)
class Shortcut:
    """A connection around some layers."""

    first: int
    """Index of the first layer that it goes around."""
    last: int
    """Index of the last one; the sum is taken behind it."""
    kind: str
    """"identity", "padded" (option A where the size changes) or "projection"."""


@dataclass(frozen=True)
class Layout:
    """A net's layers and shortcuts, from the input on."""

    layers: tuple[Layer, ...]
    shortcuts: tuple[Shortcut, ...]


def read_layout(model: nn.Module, size: int = 32) -> Layout:
    """Read off a model what it computes on one image, by running it on shapes alone.

    Args:
        model: takes (1, 3, size, size); left as it is. A module with an attribute `shortcut` is a block.
        size: pixels on each side.
    """
    layers: list[Layer] = []
    shortcuts: list[Shortcut] = []
    model = deepcopy(model).to("meta").eval()
    branches = [getattr(module, "shortcut", None) for module in model.modules()]
    beside = {part for branch in branches if isinstance(branch, nn.Module) for part in branch.modules()}

    def convolved(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layers.append(Layer("conv", output.shape[1], output.shape[-1], module.kernel_size[0], module.stride[0]))

    def connected(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layers[-1].size > 1:  # maps before, features now
            layers.append(Layer("pool", inputs[0].shape[-1], 1))
        layers.append(Layer("fc", output.shape[-1], 1))

    begun: list[int] = []

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        begun.append(len(layers))

    def end(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        first = begun.pop()
        if module.shortcut is not None:
            shortcuts.append(Shortcut(first, len(layers) - 1, _kind(module.shortcut)))

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module not in beside:
            module.register_forward_hook(convolved)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(connected)
        elif hasattr(module, "shortcut"):
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)
    model(torch.zeros(1, 3, size, size, device="meta"))
    return Layout(tuple(layers), tuple(shortcuts))


def _kind(shortcut: Any) -> str:
    if isinstance(shortcut, nn.Identity):
        return "identity"
    return "padded" if isinstance(shortcut, PadShortcut) else "projection"
