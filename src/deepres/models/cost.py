"""What a net costs to train, in floating-point operations."""

from torch import nn

from deepres.models.blocks import Block
from deepres.models.resnet import ResNet


def flop_per_image(model: ResNet, size: int = 32) -> int:
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
