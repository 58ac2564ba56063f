"""The pre-activation nets of "Identity Mappings in Deep Residual Networks", He, Zhang, Ren, Sun, ECCV 2016.

Batch normalization and ReLU come before each convolution, so that nothing but sums lies on the way between blocks. The
first block of each stage normalizes before its shortcut leaves (figure 8 and appendix of the paper); shortcuts are
projections where dimensions grow. Nets of 6n + 2 layers have blocks of two 3x3 convolutions; those of 164 and of 1001
layers, 9n + 2, have bottlenecks: 1x1, 3x3 and 1x1, which end with four times the filters. Table 4 gives 1.7 million
parameters for 110 and 164 layers and 10.2 million for 1001, those of batch normalization not counted.
"""

import re

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from deepres.errors import UserError
from deepres.models.resnet import WIDTHS, is_depth

BOTTLENECK_DEPTHS = (164, 1001)
EXPANSION = 4  # of a bottleneck's output


class PreActBlock(nn.Module):
    """Batch normalization, ReLU and a convolution, two or three times, and the shortcut around them.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the 3x3 convolution that makes the map smaller.
        bottleneck: 1x1, 3x3 and 1x1 instead of 3x3 and 3x3.
        shared: whether the shortcut leaves after the first normalization and ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, bottleneck: bool, shared: bool) -> None:
        super().__init__()
        inner = out_channels // EXPANSION if bottleneck else out_channels
        # Channels in, channels out, size of the filters, stride of each convolution.
        convs = [(in_channels, inner, 3, stride), (inner, inner, 3, 1)]
        if bottleneck:
            convs = [(in_channels, inner, 1, 1), (inner, inner, 3, stride), (inner, out_channels, 1, 1)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels, _, _, _ in convs)
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, size, stride=step, padding=size // 2, bias=False)
            for n_in, n_out, size, step in convs
        )
        self.shared = shared
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out = F.relu(self.norms[0](x))
        shortcut = self.shortcut(out if self.shared else x)
        out = self.convs[0](out)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            out = conv(F.relu(norm(out)))
        summed: Tensor = out + shortcut
        return summed


class PreActResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation blocks, batch normalization, ReLU, pooling, a linear layer.

    `forward` takes normalized images, float (B, 3, H, W), and gives logits, float (B, num_classes).

    Args:
        depth: 6n + 2 weighted layers; 164 and 1001, which are 9n + 2, have bottlenecks.
        num_classes: the number of logits.
        generator: the source of the initial weights; None is torch's global one.

    Raises:
        UserError: an illegal depth.
    """

    def __init__(self, depth: int, *, num_classes: int = 10, generator: Generator | None = None) -> None:
        super().__init__()
        if not is_preact_depth(depth):
            raise UserError(f"depth is {depth!r}: a pre-activation net has 6n + 2 layers, or 164, or 1001")
        bottleneck = depth in BOTTLENECK_DEPTHS
        num_blocks = (depth - 2) // (9 if bottleneck else 6)
        widths = [filters * (EXPANSION if bottleneck else 1) for filters in WIDTHS]
        self.depth = depth
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        blocks, channels = [], WIDTHS[0]
        for stage, width in enumerate(widths):
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(PreActBlock(channels, width, stride, bottleneck=bottleneck, shared=i == 0))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # as the nets of the first paper
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = F.relu(self.norm(self.blocks(self.conv1(x))))  # (B, 64 or 256, H/4, W/4)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))  # (B, num_classes)
        return logits


def is_preact_depth(depth: int) -> bool:
    """Tell whether a pre-activation net can have so many layers."""
    return is_depth(depth) or depth in BOTTLENECK_DEPTHS


def preact_depth(name: object) -> int | None:
    """Return the layers that a name such as "preresnet20" asks for; None if it names no pre-activation net."""
    match = re.fullmatch(r"preresnet([1-9]\d{0,3})", name) if isinstance(name, str) else None
    return int(match[1]) if match and is_preact_depth(int(match[1])) else None
