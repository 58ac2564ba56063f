"""The CIFAR-10 networks of section 4.2: 6n + 2 weighted layers, plain or residual."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from deepres.errors import UserError, unknown_name
from deepres.models.blocks import Block, build_shortcut

PLAIN_DEPTHS = (20, 32, 44, 56, 110)
RESIDUAL_DEPTHS = (20, 32, 44, 56, 110, 1202)
OPTIONS = ("A", "B", "C")
WIDTHS = (16, 32, 64)  # filters on the feature map sizes 32, 16, 8
MAX_DEPTH, MAX_WIDTH = 1202, 16  # a name beyond these is taken for a mistake


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks, global average pooling and a linear layer.

    `forward` takes normalised images, float (B, 3, H, W), and gives logits, float (B, num_classes). Any H and W
    will do; the paper's are 32.

    Args:
        depth: 6n + 2 weighted layers: 8, 14, 20 ... 1202; the paper's are 20, 32, 44, 56, 110 and, residual, 1202.
        residual: with shortcuts (ResNet), or without them (plain net).
        width: how many times the paper's filters, 16, 32 and 64, each stage has (Zagoruyko, Komodakis, "Wide residual
            networks", 2016).
        option: the kind of shortcut: "A" identity and zero-padding (the paper's on CIFAR-10), "B" projections
            where the dimensions grow, "C" projections everywhere. A plain net has none and takes only "A".
        num_classes: the number of logits.
        generator: the source of the initial weights; None is torch's global one.

    Raises:
        UserError: an illegal depth, width or option; the message says which are legal.
    """

    def __init__(
        self,
        depth: int,
        *,
        residual: bool = True,
        width: int = 1,
        option: str = "A",
        num_classes: int = 10,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(depth, bool) or not isinstance(depth, int) or not is_depth(depth):
            raise UserError(
                f"depth is {depth!r}: a net has 6n + 2 layers, such as 20, 26 or 32, and at most {MAX_DEPTH}"
            )
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
            raise UserError(f"width is {width!r}: it must be a whole number from 1 to {MAX_WIDTH}")
        if option not in OPTIONS:
            raise unknown_name("shortcut option", option, OPTIONS)
        if not residual and option != "A":
            raise UserError(f"a plain net has no shortcuts: option {option!r} applies to residual nets only")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise UserError(f"num_classes is {num_classes!r}: it must be a whole number of at least 1")
        self.depth = depth
        self.residual = residual
        self.width = width
        self.option = option

        widths = [width * filters for filters in WIDTHS]
        num_blocks = (depth - 2) // 6  # n; a block has two weighted layers
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], num_blocks, stride=1)
        self.layer2 = self._stage(widths[0], widths[1], num_blocks, stride=2)
        self.layer3 = self._stage(widths[1], widths[2], num_blocks, stride=2)
        self.fc = nn.Linear(widths[2], num_classes)
        self.initialize(generator)

    def _stage(self, in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        blocks = []
        for i in range(num_blocks):
            channels, step = (in_channels, stride) if i == 0 else (out_channels, 1)
            shortcut = build_shortcut(self.option, channels, out_channels, step) if self.residual else None
            blocks.append(Block(channels, out_channels, step, shortcut))
        return nn.Sequential(*blocks)

    def initialize(self, generator: Generator | None = None) -> None:
        """Draw He's initial weights: normal, variance 2 / fan-in ("Delving deep into rectifiers", equation 10)."""
        if self.fc.weight.is_meta:
            return  # Shapes alone: there is nothing to draw, and torch would import its compiler for it, a second.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features: (B, 3, H, W) -> (B, 64)."""
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 16, H, W)
        x = self.layer1(x)  # (B, 16, H, W)
        x = self.layer2(x)  # (B, 32, H/2, W/2)
        x = self.layer3(x)  # (B, 64, H/4, W/4)
        return x.mean(dim=(2, 3))  # (B, 64)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.fc(self.forward_features(x))  # (B, num_classes)
        return logits


MODELS: Mapping[str, Callable[..., ResNet]] = MappingProxyType(
    {f"plain{depth}": partial(ResNet, depth, residual=False) for depth in PLAIN_DEPTHS}
    | {f"resnet{depth}": partial(ResNet, depth) for depth in RESIDUAL_DEPTHS}
)


def build_model(name: str, *, option: str = "A", num_classes: int = 10, generator: Generator | None = None) -> ResNet:
    """Build a net by name, with fresh weights: one of the paper's or one of another depth or width.

    Args:
        name: "resnet20" or "plain56": the kind and the layers, 6n + 2 of them; "resnet20x2" has twice the filters.
        option: the kind of shortcut, "A", "B" or "C".
        num_classes: the number of logits.
        generator: the source of the initial weights; None is torch's global one.

    Raises:
        UserError: an unknown name or option, or a number of classes below 1.

    Example:
        >>> import deepres, torch
        >>> deepres.build_model("resnet20")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if (parts := parse_name(name)) is None:
        raise UserError(
            f"{unknown_name('model', name, MODELS)}, or another net of 6n + 2 layers, such as resnet26, or of more "
            "filters, such as resnet20x2"
        )
    residual, depth, width = parts
    return ResNet(depth, residual=residual, width=width, option=option, num_classes=num_classes, generator=generator)


def net_name(model: ResNet) -> str:
    """Return a net's name, such as "resnet20" or "plain20x2"."""
    return make_name(model.residual, model.depth, model.width)


def make_name(residual: bool, depth: int, width: int = 1) -> str:
    """Return the name of a net, which `parse_name` takes apart."""
    return f"{'resnet' if residual else 'plain'}{depth}{f'x{width}' if width > 1 else ''}"


def parse_name(name: object) -> tuple[bool, int, int] | None:
    """Return what a net's name says: residual or not, layers, times the filters; None if it names none."""
    match = re.fullmatch(r"(plain|resnet)([1-9]\d{0,3})(?:x([1-9]\d?))?", name) if isinstance(name, str) else None
    if match is None:
        return None
    residual, depth, width = match[1] == "resnet", int(match[2]), int(match[3] or 1)
    legal = is_depth(depth) and width <= MAX_WIDTH and match[3] != "1"
    return (residual, depth, width) if legal else None


def is_depth(depth: int) -> bool:
    """Tell whether a net can have so many layers: 6n + 2."""
    return depth % 6 == 2 and 8 <= depth <= MAX_DEPTH


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters, as the paper's tables do."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
