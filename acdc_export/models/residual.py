"""Residual networks of basic blocks, for small images: `residual_cnn`, and `resnet_cifar` as in the literature."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UsageError
from .arguments import require_positive


def residual_cnn(
    channels: int, width: int, blocks: int, classes: int, stem_stride: int = 1, stages: int = 2
) -> nn.Module:
    """Build a small residual network for small images.

    It has a stem, stages of `blocks` basic blocks, the mean over height and width, and a linear head. Each stage has
    half the resolution and twice the width of the one before. A `stem_stride` of 2 halves the resolution before the
    first stage. The network takes (N, channels, H, W), and gives (N, classes).
    Raises `UsageError` for numbers that are not positive.
    """
    numbers = {"channels": channels, "width": width, "blocks": blocks, "classes": classes}
    require_positive("residual_cnn", **numbers, stem_stride=stem_stride, stages=stages)
    return _ResidualCNN(channels, width, blocks, classes, stem_stride, stages)


def resnet_cifar(depth: int = 20, classes: int = 10, channels: int = 3) -> nn.Module:
    """Build the ResNet for 32x32 images of He et al. 2015 (arXiv:1512.03385, section 4.2), 20 to 110 layers deep.

    It takes (N, channels, 32, 32), and gives (N, classes). Where a stage begins, the shortcut is a 1x1 convolution, as
    in the AC/DC authors' own network; He et al. have no weights there. Their names and their start are its own too:
    convolutions from N(0, sqrt(2 / (k k out_channels))). Depth 20 has 22 layers to prune.
    Raises `UsageError` for numbers that are not positive, and for depths other than 6 n + 2.
    """
    require_positive("resnet_cifar", depth=depth, classes=classes, channels=channels)
    if depth < 8 or depth % 6 != 2:
        raise UsageError(f"resnet_cifar: depth is {depth}.", "Give depth as 6 n + 2: 20, 32, 44, 56, 110.")
    return _ResNetCIFAR(depth, classes, channels)


class _ResidualCNN(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int, classes: int, stem_stride: int, stages: int) -> None:
        super().__init__()
        self.stem = _convolution(channels, width, stem_stride)
        self.body = nn.Sequential()
        for stage in range(1, stages + 1):
            if stage > 1:
                self.body.add_module(f"down{stage}", _convolution(width, 2 * width, stride=2))
                width *= 2
            self.body.add_module(f"stage{stage}", nn.Sequential(*(_Block(width, width) for _ in range(blocks))))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class _ResNetCIFAR(nn.Module):
    def __init__(self, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(_Block(16, 32, stride=2), *(_Block(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(_Block(32, 64, stride=2), *(_Block(64, 64) for _ in range(blocks - 1)))
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # the standard deviation is sqrt(2 / (kernel height * width * filters))
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Has two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()  # the identity
        if (in_channels, stride) != (out_channels, 1):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.bn1(self.conv1(x)).relu()
        residual: Tensor = self.bn2(self.conv2(inner))
        shortcut: Tensor = self.downsample(x)
        return (shortcut + residual).relu()


def _convolution(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
