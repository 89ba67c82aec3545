"""Wide residual networks for 32x32 images: `wide_resnet` of the AC/DC authors, and `wide_resnet_original`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import UsageError
from .arguments import require_positive


def wide_resnet(
    depth: int = 28, width: int = 10, dropout: float = 0.3, classes: int = 100, channels: int = 3
) -> nn.Module:
    """Build WRN-`depth`-`width` as the AC/DC authors do (IST-DASLab/ACDC), by the names of their checkpoints.

    It differs from `wide_resnet_original`: all convolutions have biases, the second one of a block has its stride,
    dropout follows the first one directly, the shortcut takes the block's input as it is, and the last batch norm has
    momentum 0.9. Convolutions start from Xavier's uniform distribution with gain sqrt(2), and biases from 0.
    It takes (N, channels, 32, 32), and gives (N, classes). WRN-28-10 has 36,546,980 parameters and 29 layers to prune.
    Raises `UsageError` for numbers that are not positive, depths other than 6 n + 4, and a dropout outside [0, 1).
    """
    blocks = _blocks("wide_resnet", depth, width, dropout, classes, channels)
    model = _WideResNet(_Block, blocks, width, dropout, classes, channels, bias=True)
    model.bn1.momentum = 0.9
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight, nn.init.calculate_gain("relu"))
            nn.init.zeros_(module.bias)
    return model


def wide_resnet_original(
    depth: int = 28, width: int = 10, dropout: float = 0.3, classes: int = 100, channels: int = 3
) -> nn.Module:
    """Build WRN-`depth`-`width` of Zagoruyko and Komodakis 2016 (arXiv:1605.07146).

    Dropout stands between the two convolutions of a block; none of them has a bias. It takes (N, channels, 32, 32), and
    gives (N, classes). WRN-28-10 has 36,536,884 parameters and 29 layers to prune.
    Raises `UsageError` as `wide_resnet`.
    """
    blocks = _blocks("wide_resnet_original", depth, width, dropout, classes, channels)
    return _WideResNet(_OriginalBlock, blocks, width, dropout, classes, channels, bias=False)


def _blocks(network: str, depth: int, width: int, dropout: float, classes: int, channels: int) -> int:
    """The number of blocks in each of the three stages. Raises `UsageError` for arguments that make no network."""
    require_positive(network, depth=depth, width=width, classes=classes, channels=channels)
    if depth < 10 or depth % 6 != 4:
        raise UsageError(f"{network}: depth is {depth}.", "Give depth as 6 n + 4: 16, 22, 28, 40.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UsageError(f"{network}: dropout is {dropout!r}.", "Give dropout as a share from 0 to below 1.")
    return (depth - 4) // 6


class _WideResNet(nn.Module):
    def __init__(
        self,
        block: Callable[[int, int, int, float], nn.Module],
        blocks: int,
        width: int,
        dropout: float,
        classes: int,
        channels: int,
        *,
        bias: bool,
    ) -> None:
        super().__init__()

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            rest = (block(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1))
            return nn.Sequential(block(in_channels, out_channels, stride, dropout), *rest)

        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=bias)
        self.layer1 = stage(16, 16 * width, 1)
        self.layer2 = stage(16 * width, 32 * width, 2)
        self.layer3 = stage(32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.bn1(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Normalises and rectifies before each convolution, but not before the 1x1 shortcut where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)
        self.shortcut = nn.Sequential()  # the identity
        if (in_channels, stride) != (out_channels, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.dropout(self.conv1(self.bn1(x).relu()))
        return self.conv2(self.bn2(inner).relu()) + self.shortcut(x)  # type: ignore[no-any-return]


class _OriginalBlock(nn.Module):
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
