"""The building blocks: a pair of 3x3 convolutions, and the three kinds of shortcut around it (section 3.3)."""

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A where the size changes: subsample by the stride, fill the extra channels with zeros.

    It has no parameters, which is why a residual net has exactly as many as its plain twin (section 4.2).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x[:, :, :: self.stride, :: self.stride]  # (B, in, H/s, W/s)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))  # (B, out, H/s, W/s)


class ProjectionShortcut(nn.Sequential):
    """Options B and C: a 1x1 convolution of the block's stride, batch-normalised as every convolution is."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


def build_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut of one block for option "A", "B" or "C" (section 3.3 and table 3)."""
    changes_size = stride != 1 or in_channels != out_channels
    if option == "C" or (option == "B" and changes_size):
        return ProjectionShortcut(in_channels, out_channels, stride)
    if changes_size:
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Identity()


class Block(nn.Module):
    """Two 3x3 convolutions, batch-normalised; with a shortcut around them it is a residual block (figure 2).

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)  # y = F(x) + x, equation 1
        return F.relu(out)
