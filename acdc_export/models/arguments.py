"""Checks of the arguments of networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UsageError, nearest


def require_positive(network: str, **arguments: object) -> None:
    """Refuse the first of `arguments` that is no positive integer. Raises `UsageError`."""
    for argument, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{network}: {argument} is {value!r}.", f"Give {argument} as a positive integer.")


def require_fit(name: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that don't fit `maker`. Raises `UsageError`.

    The message names all of them; Python's own names one at a time.
    """
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return
    parameters = signature.parameters.values()
    known = [item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    takes_any = any(item.kind == item.VAR_KEYWORD for item in parameters)
    problems = [f"'{key}' is unknown{nearest(key, known)}" for key in arguments if key not in known and not takes_any]
    problems += [
        f"'{item.name}' is missing"
        for item in parameters
        if item.name in known and item.default is item.empty and item.name not in arguments
    ]
    if problems:
        raise UsageError(
            f"The model '{name}' can't be built: {', '.join(problems)}.",
            f"It takes {', '.join(known) or 'no arguments'}.",
        )
