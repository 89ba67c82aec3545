"""ResNet-50 in the shapes of torchvision's, which doesn't install beside every build of torch."""

from __future__ import annotations

from torch import Tensor, nn


def resnet50(classes: int = 1000) -> nn.Module:
    """25.6 million parameters; takes (N, 3, 224, 224)."""
    layers: list[nn.Module] = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            layers.append(_Bottleneck(before, width, 2 if stage and not block else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _convolution(before, width, 1), nn.ReLU(),
            _convolution(width, width, 3, stride), nn.ReLU(),
            _convolution(width, 4 * width, 1),
        )  # fmt: skip
        self.around = nn.Identity() if before == 4 * width else _convolution(before, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.inner(x) + self.around(x)
        return added.relu()


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(after))
