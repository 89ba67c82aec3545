"""`mobilenet_v1`, after Howard et al. 2017 (arXiv:1704.04861)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UsageError
from .arguments import require_positive

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels and stride of the 13 separable convolutions."""


def mobilenet_v1(classes: int = 1000, multiplier: float = 1.0) -> nn.Module:
    """Build MobileNetV1 with every width times `multiplier`.

    It has a convolution, 13 separable ones (depthwise 3x3, pointwise 1x1) and a linear head. It takes (N, 3, H, W),
    usually 224x224, and gives (N, classes). It has 4.2 million parameters and 28 layers to prune; the 13 depthwise ones
    hold 1 % of the weights. Raises `UsageError` for numbers that leave it without a channel.
    """
    require_positive("mobilenet_v1", classes=classes)
    if not isinstance(multiplier, int | float) or not multiplier >= 1 / 32:
        raise UsageError(f"mobilenet_v1: multiplier is {multiplier!r}.", "Give multiplier as a number from 1/32 on.")
    return _MobileNetV1(classes, multiplier)


class _MobileNetV1(nn.Module):
    def __init__(self, classes: int, multiplier: float) -> None:
        super().__init__()
        width = int(32 * multiplier)
        layers = [nn.Sequential(*_convolution(3, width, 3, stride=2))]
        for channels, stride in _BLOCKS:
            next_width = int(channels * multiplier)
            depthwise = _convolution(width, width, 3, stride, groups=width)
            layers.append(nn.Sequential(*depthwise, *_convolution(width, next_width, 1)))
            width = next_width
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x).mean((2, 3)))  # type: ignore[no-any-return]


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
