"""The built-in networks, and networks of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..data.importing import import_named, reason
from ..errors import UsageError, nearest
from .arguments import require_fit
from .mobilenet import mobilenet_v1
from .residual import residual_cnn, resnet_cifar
from .wide import wide_resnet, wide_resnet_original

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "residual_cnn": residual_cnn,
    "resnet_cifar": resnet_cifar,
    "wide_resnet": wide_resnet,
    "wide_resnet_original": wide_resnet_original,
    "mobilenet_v1": mobilenet_v1,
}


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network `name`, a built-in or `package.module:callable`, with `arguments`.

    Raises:
        UsageError: the name is unknown, the arguments don't fit, or the callable fails or returns no module.
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
    require_fit(name, maker, arguments)
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
