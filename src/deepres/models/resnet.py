"""The CIFAR-10 networks of section 4.2: 6n + 2 weighted layers, plain or residual."""

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


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks, global average pooling and a linear layer.

    `forward` takes normalised images, float (B, 3, H, W), and gives logits, float (B, num_classes). Any H and W
    will do; the paper's are 32.

    Args:
        depth: 6n + 2 weighted layers, one of 20, 32, 44, 56, 110, 1202 (plain: up to 110).
        residual: with shortcuts (ResNet), or without them (plain net).
        option: the kind of shortcut: "A" identity and zero-padding (the paper's on CIFAR-10), "B" projections
            where the dimensions grow, "C" projections everywhere. A plain net has none and takes only "A".
        num_classes: the number of logits.
        generator: the source of the initial weights; None is torch's global one.

    Raises:
        UserError: an illegal depth or option; the message lists the legal ones.
    """

    def __init__(
        self,
        depth: int,
        *,
        residual: bool = True,
        option: str = "A",
        num_classes: int = 10,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        depths = RESIDUAL_DEPTHS if residual else PLAIN_DEPTHS
        if isinstance(depth, bool) or not isinstance(depth, int) or depth not in depths:
            raise unknown_name("depth of a residual net" if residual else "depth of a plain net", depth, depths)
        if option not in OPTIONS:
            raise unknown_name("shortcut option", option, OPTIONS)
        if not residual and option != "A":
            raise UserError(f"a plain net has no shortcuts: option {option!r} applies to residual nets only")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise UserError(f"num_classes is {num_classes!r}: it must be a whole number of at least 1")
        self.depth = depth
        self.residual = residual
        self.option = option

        num_blocks = (depth - 2) // 6  # n; a block has two weighted layers
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], num_blocks, stride=1)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], num_blocks, stride=2)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], num_blocks, stride=2)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
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
    """Build a net of the paper by name, with fresh weights.

    Args:
        name: a key of `MODELS`, such as "resnet20" or "plain56".
        option: the kind of shortcut, "A", "B" or "C".
        num_classes: the number of logits.
        generator: the source of the initial weights; None is torch's global one.

    Raises:
        UserError: an unknown name or option, or a number of classes below 1.

    Example:
        >>> build_model("resnet20")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if not isinstance(name, str) or name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name](option=option, num_classes=num_classes, generator=generator)


def net_name(model: ResNet) -> str:
    """Return the key of `MODELS` of a net, such as "resnet20"."""
    return f"{'resnet' if model.residual else 'plain'}{model.depth}"


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters, as the paper's tables do."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
