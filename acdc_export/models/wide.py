"""`wide_resnet`, after Zagoruyko and Komodakis 2016 (arXiv:1605.07146), for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UsageError
from .arguments import require_positive


def wide_resnet(
    depth: int = 28, width: int = 10, dropout: float = 0.3, classes: int = 100, channels: int = 3
) -> nn.Module:
    """Build WRN-`depth`-`width`, with dropout between the two convolutions of a block.

    It takes (N, channels, 32, 32), and gives (N, classes). WRN-28-10 has 36.5 million parameters and 29 layers to
    prune.
    Raises `UsageError` for numbers that are not positive, depths other than 6 n + 4, and a dropout outside [0, 1).
    """
    require_positive("wide_resnet", depth=depth, width=width, classes=classes, channels=channels)
    if depth < 10 or depth % 6 != 4:
        raise UsageError(f"wide_resnet: depth is {depth}.", "Give depth as 6 n + 4: 16, 22, 28, 40.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UsageError(f"wide_resnet: dropout is {dropout!r}.", "Give dropout as a share from 0 to below 1.")
    return _WideResNet((depth - 4) // 6, width, dropout, classes, channels)


class _WideResNet(nn.Module):
    def __init__(self, blocks: int, width: int, dropout: float, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, 16, 16 * width, 1, dropout)
        self.layer2 = _stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.layer3 = _stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.bn1(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Normalises and rectifies before each convolution. Where a stage begins, so does its 1x1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.bn1(x).relu()
        inner = self.dropout(self.bn2(self.conv1(active)).relu())
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(inner) + shortcut  # type: ignore[no-any-return]


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int, dropout: float) -> nn.Sequential:
    rest = (_Block(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(_Block(in_channels, out_channels, stride, dropout), *rest)
