"""What a net costs to train, in floating-point operations."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


def flop_per_image(model: nn.Module, size: int = 32) -> int:
    """Count the floating-point operations of training on one image: forward, and twice that backward.

    A multiply-add is two operations; those of convolutions and linear layers are counted, all else is small. The first
    layer's input needs no gradient.

    Args:
        model: takes (1, 3, size, size); it is left as it is.
        size: pixels on each side.
    """
    multiply_adds: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        positions = output[0].numel() // output.shape[1]
        weight = module.weight
        assert isinstance(weight, Tensor)
        multiply_adds.append(weight.numel() * positions)

    model = deepcopy(model).to("meta").eval()  # shapes alone: nothing is computed
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, size, size, device="meta"))
    return 2 * (3 * sum(multiply_adds) - multiply_adds[0])
