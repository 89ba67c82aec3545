"""The folder that outlives a run. It holds installed runtimes, and the licenses accepted for them."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return `$ACDC_EXPORT_HOME`, else `acdc-export` in `$XDG_CACHE_HOME` or `~/.cache`. It may not exist yet."""
    if folder := os.environ.get("ACDC_EXPORT_HOME"):
        return Path(folder).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification says to ignore relative paths
        cache = Path("~/.cache").expanduser()
    return cache / "acdc-export"
