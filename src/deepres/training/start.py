"""Where the training of a chain starts: the layers in series that no shortcut bridges, most of a plain net.

A layer is a convolution, batch normalization and ReLU. Batch normalization keeps the size of a layer's output whatever
the weights; the differences between images it does not keep. To first order a layer multiplies the square of a small
difference by E[relu'(z)²] / Var[relu(z)], z ~ N(shift, 1): by pi / (pi - 1) = 1.47 at the usual shift of 0, a billion
times in 54 layers, and gradients grow as much on their way back (Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, "A
mean field theory of batch normalization", 2019). A higher shift makes ReLU more nearly linear and the factor smaller.
"""

import math

import torch
from torch import Tensor, nn

from deepres.models import ResNet
from deepres.models.blocks import Block
from deepres.recipes.parts import Chain

LARGEST_SHIFT = 8.0  # where a layer is linear to the last digits


def chain_length(model: nn.Module) -> int:
    """Return the number of layers in series, within blocks, that no shortcut bridges; 1 where shortcuts bridge all."""
    return model.depth - 2 if isinstance(model, ResNet) and not model.residual else 1


def layer_gain(shift: float) -> float:
    """Return the factor by which a layer multiplies the square of a small difference between images."""
    inside = (1 + math.erf(shift / math.sqrt(2))) / 2  # P(z > 0) = E[relu'(z)²]
    density = math.exp(-(shift**2) / 2) / math.sqrt(2 * math.pi)
    mean = shift * inside + density
    mean_square = (shift**2 + 1) * inside + shift * density
    return inside / (mean_square - mean**2)


def initial_shift(length: int, gain: float) -> float:
    """Return the smallest shift, 0 or more, at which a chain of `length` layers has at most this gain.

    Args:
        length: layers in series.
        gain: the product of the layers' gains, above 1.
    """
    low, high = 0.0, LARGEST_SHIFT
    if layer_gain(low) ** length <= gain:
        return low
    for _ in range(60):  # the gain falls as the shift rises
        middle = (low + high) / 2
        low, high = (middle, high) if layer_gain(middle) ** length > gain else (low, middle)
    return high


def norm_parameters(model: nn.Module) -> list[Tensor]:
    """Return the scales and shifts of all batch normalizations, in the model's order."""
    return [p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()]


@torch.no_grad()
def start_chain(chain: Chain, model: nn.Module, length: int) -> None:
    """Change the initial parameters of a net that is a chain of `length` layers, in place, as a recipe says."""
    if chain.gain is not None:
        shift = initial_shift(length, chain.gain)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms[:-1]:  # the last one's output is pooled: no layer follows
            norm.bias.fill_(shift)
    if chain.identity_share is not None:
        for block in model.modules():
            if isinstance(block, Block):
                for conv in (block.conv1, block.conv2):
                    mix_with_identity(conv.weight, chain.identity_share)


def mix_with_identity(weight: Tensor, share: float) -> None:
    """Give the identity a share of a bank of random filters, in place; the rest keeps its directions.

    Its filter j passes on channel j, or where there are more filters than channels, j modulo their number. The bank's
    norm becomes the square root of the matrix's smaller side, that of a semi-orthogonal one.

    Args:
        weight: (out, in, height, width), odd height and width.
        share: of the squared norm, between 0 and 1, but for the random filters' small product with the identity.
    """
    identity = torch.zeros_like(weight)
    outs = torch.arange(len(weight), device=weight.device)
    identity[outs, outs % weight.shape[1], weight.shape[2] // 2, weight.shape[3] // 2] = 1.0
    norm = min(len(weight), weight[0].numel()) ** 0.5
    weight.mul_(norm * (1 - share) ** 0.5 / weight.norm())
    weight.add_(identity * (norm * share**0.5 / identity.norm()))
