"""What a net costs to train, in floating-point operations."""

import torch
from torch import nn

from deepres.models.blocks import Block
from deepres.models.resnet import ResNet


def flop_per_image(model: nn.Module, size: int = 32) -> int:
    """Return the floating-point operations of training on one image: those of our nets by formula, others' measured.

    Args:
        model: a net; takes normalised images, float32 (B, 3, size, size).
        size: pixels on each side of an image.
    """
    if isinstance(model, ResNet):
        return flop_of_resnet(model, size)
    from torch.utils.flop_counter import FlopCounterMode

    training = [module for module in model.modules() if module.training]
    weight = next(model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))
    for module in training:
        module.training = True
    return 3 * int(counter.get_total_flops())  # backward takes twice as many as forward


def flop_of_resnet(model: ResNet, size: int) -> int:
    """Count the floating-point operations of training on one image: forward, and twice that backward.

    A multiply-add is two operations; those of convolutions and linear layers are counted, all else is small. The first
    layer's input needs no gradient.

    Args:
        model: the net.
        size: pixels on each side of an image.
    """
    first = multiply_adds = model.conv1.weight.numel() * size**2
    for block in model.modules():
        if isinstance(block, Block):
            size = -(-size // block.conv1.stride[0])  # of whatever the block's convolutions put out
            convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
            multiply_adds += sum(conv.weight.numel() for conv in convs) * size**2
    multiply_adds += model.fc.weight.numel()
    return 2 * (3 * multiply_adds - first)
