"""The folder that outlives a run. It holds installed runtimes, and the licenses accepted for them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UsageError
from ..files import expanded

_REMEDY = "Set ACDC_EXPORT_HOME to a folder that outlives this run; runtimes are installed there."


def home() -> Path:
    """Return `$ACDC_EXPORT_HOME`, else `acdc-export` in `$XDG_CACHE_HOME` or `~/.cache`. It may not exist yet.

    Raises:
        UsageError: none of these is known. A container may run as a user without HOME and without an entry in passwd.
    """
    if folder := os.environ.get("ACDC_EXPORT_HOME"):
        return expanded(Path(folder), _REMEDY).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification says to ignore relative paths
        cache = expanded(Path("~/.cache"), _REMEDY)
        if not cache.is_absolute():
            raise UsageError(f"HOME is {os.environ.get('HOME')!r}, which is no absolute path.", _REMEDY)
    return cache / "acdc-export"
