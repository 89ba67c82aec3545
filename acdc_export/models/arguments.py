"""What the built-in networks and the way to them check of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UsageError, nearest


def require_positive(network: str, **arguments: object) -> None:
    """Raises `UsageError` for the first of `arguments` that is no positive integer."""
    for argument, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{network}: {argument} is {value!r}.", f"Give {argument} as a positive integer.")


def require_fit(name: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Name all the arguments that don't fit, which Python's own message does one at a time. Raises `UsageError`."""
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
