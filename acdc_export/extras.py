"""Optional dependencies: where one is missing, the user gets one line that installs it, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RuntimeUnavailable


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wrap the imports that the extra `name` makes possible. Raises `RuntimeUnavailable` if one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"{error.name} is not installed, which this needs.", f"Run: pip install 'acdc-export[{name}]'"
        ) from error
