"""acdc-export: the sparse half of an AC/DC pair, put into the runtime that will serve it, and judged there.

The names below are loaded when they are first used, so that `import acdc_export` needs neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .bundle import Bundle
    from .errors import AcdcExportError
    from .pair import Pair
    from .training import ACDC, NM, Blocks, Schedule, Unstructured
    from .workflow import check, compare, export, run, train, verify

_HOMES = {
    "ACDC": "training",
    "NM": "training",
    "AcdcExportError": "errors",
    "Blocks": "training",
    "Bundle": "bundle",
    "Pair": "pair",
    "Schedule": "training",
    "Unstructured": "training",
    "check": "workflow",
    "compare": "workflow",
    "export": "workflow",
    "run": "workflow",
    "train": "workflow",
    "verify": "workflow",
}

__all__ = [
    "ACDC",
    "NM",
    "AcdcExportError",
    "Blocks",
    "Bundle",
    "Pair",
    "Schedule",
    "Unstructured",
    "__version__",
    "check",
    "compare",
    "export",
    "run",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
