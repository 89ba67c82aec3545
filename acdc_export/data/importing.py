"""Import the callable that a user names as `package.module:callable`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UsageError, nearest
from ..extras import extra


def reason(error: BaseException) -> str:
    """The message of an exception in a user's code, in one line."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def import_named(spec: str, what: str, built_in: Sequence[str]) -> Callable[..., Any]:
    """Import the callable that `spec` names. It is looked for where Python looks, and then in the working directory.

    Args:
        what: says in errors what the callable is for ("model", "data").
        built_in: names that the user may have meant.

    Raises:
        UsageError: there is no such module, its import fails, or it has no such callable.
        RuntimeUnavailable: the module needs torchvision, which is not installed.
    """
    module_name, _, attribute = spec.partition(":")
    working_directory = str(Path.cwd())
    sys.path.append(working_directory)  # at the end, so that no local file stands in for a package
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module can fail in any way
        if (
            isinstance(error, ModuleNotFoundError) and error.name == "torchvision"
        ):  # built-in pipelines name its networks
            with extra("vision"):
                raise
        raise UsageError(
            f"The {what} '{spec}' can't be imported{nearest(module_name, built_in)}: {reason(error)}.",
            f"Give package.module:callable, from a module that Python finds; built in: {', '.join(built_in)}.",
        ) from error
    finally:
        sys.path.remove(working_directory)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise UsageError(
            f"{module_name} has no callable '{attribute}'{nearest(attribute, names)}.",
            f"Name the function that returns the {what}: {module_name}:function",
        )
    return function  # type: ignore[no-any-return]
