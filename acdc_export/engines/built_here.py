"""Which compiled models were built here. They are code: one that came from elsewhere is not loaded just like that.

The record of a model is an empty file in the home folder, outside of every bundle. Its name is the model's SHA-256.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..errors import UsageError
from ..files import sha256
from .home import home


def remember(model: Path) -> None:
    """Record that a file was built here. Where the home folder can't be written, it counts as one from elsewhere."""
    with suppress(OSError, UsageError):
        record = _record(sha256(model))
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def is_known(fingerprint: str) -> bool:
    """Whether a file with this SHA-256 was built here."""
    try:
        return _record(fingerprint).is_file()
    except (OSError, UsageError):
        return False


def _record(fingerprint: str) -> Path:
    return home() / "built" / fingerprint
