"""A bundle beside an older one: is it still as fast, and if not, what made it slower?"""

from ..present.check import markdown, render
from ..records.check import SCHEMA_VERSION, BundleFacts, Cause, Check, Kind
from . import baseline
from .loaded import LoadedBundle, find_target, prepare
from .request import Request, resolve
from .steps import REGRESSION, STORED, Setup, conduct, gates
from .writing import append_history, check_history, check_place, entry, to_json, write

__all__ = [
    "REGRESSION",
    "SCHEMA_VERSION",
    "STORED",
    "BundleFacts",
    "Cause",
    "Check",
    "Kind",
    "LoadedBundle",
    "Request",
    "Setup",
    "append_history",
    "baseline",
    "check_history",
    "check_place",
    "conduct",
    "entry",
    "find_target",
    "gates",
    "markdown",
    "prepare",
    "render",
    "resolve",
    "to_json",
    "write",
]
