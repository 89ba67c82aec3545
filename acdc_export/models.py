"""The built-in networks, and the way to one of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .data.importing import import_named, reason
from .errors import UsageError, nearest


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network `name`, a built-in or `package.module:callable`, called with `arguments`.

    Raises:
        UsageError: an unknown name, arguments that don't fit, or a callable that fails or returns something else.
    """
    if ":" in name:
        maker = import_named(name, "model", list(BUILT_IN))
    elif name in BUILT_IN:
        maker = BUILT_IN[name]
    else:
        raise UsageError(
            f"Unknown model '{name}'{nearest(name, list(BUILT_IN))}.",
            f"Built-in models: {', '.join(BUILT_IN)}. Your own is given as package.module:callable.",
        )
    _check_arguments(name, maker, arguments)
    try:
        model = maker(**arguments)
    except UsageError:
        raise
    except Exception as error:  # a user's callable can fail in any way
        raise UsageError(
            f"The model '{name}' can't be built: {reason(error)}.",
            "Correct its arguments under [model], or the callable.",
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"The model '{name}' is {type(model).__name__}, not a torch.nn.Module.", "Let the callable return one."
        )
    return model


def residual_cnn(channels: int, width: int, blocks: int, classes: int) -> nn.Module:
    """A small residual network for small images: a stem, two stages of `blocks` basic blocks (the second at half
    the resolution and twice the width), the mean over height and width, and a linear head.

    Takes (N, channels, H, W), gives (N, classes). Raises `UsageError` for numbers that are not positive.
    """
    for argument, value in {"channels": channels, "width": width, "blocks": blocks, "classes": classes}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"residual_cnn: {argument} is {value!r}.", f"Give {argument} as a positive integer.")
    return _ResidualCNN(channels, width, blocks, classes)


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"residual_cnn": residual_cnn}


class _ResidualCNN(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = _convolution(channels, width)
        self.stage1 = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.down = _convolution(width, 2 * width, stride=2)
        self.stage2 = nn.Sequential(*(_Block(2 * width) for _ in range(blocks)))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Two 3x3 convolutions around which the input is led."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.bn1(self.conv1(x)).relu()
        outer: Tensor = self.bn2(self.conv2(inner))
        return (x + outer).relu()


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


def _check_arguments(name: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Name the arguments that don't fit, which Python's own message does one at a time."""
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # some callables of C have none
        return
    takes = signature.parameters.values()
    known = [item.name for item in takes if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    anything = any(item.kind == item.VAR_KEYWORD for item in takes)
    problems = [f"'{key}' is unknown{nearest(key, known)}" for key in arguments if key not in known and not anything]
    problems += [
        f"'{item.name}' is missing"
        for item in takes
        if item.name in known and item.default is item.empty and item.name not in arguments
    ]
    if problems:
        raise UsageError(
            f"The model '{name}' can't be built: {', '.join(problems)}.",
            f"It takes {', '.join(known) or 'no arguments'}.",
        )
