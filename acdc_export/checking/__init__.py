"""A bundle beside an older one: is it still as fast, and if not, what made it slower?"""

from ..records.check import BundleFacts, Cause, Check, Kind
from . import baseline
from .compiled import admit
from .loaded import LoadedBundle, find_target, open_bundle
from .request import Request, resolve
from .steps import REGRESSION, STORED, Setup, conduct, gates
from .writing import append_history, check_history, check_place, entry, write

__all__ = [
    "REGRESSION",
    "STORED",
    "BundleFacts",
    "Cause",
    "Check",
    "Kind",
    "LoadedBundle",
    "Request",
    "Setup",
    "admit",
    "append_history",
    "baseline",
    "check_history",
    "check_place",
    "conduct",
    "entry",
    "find_target",
    "gates",
    "open_bundle",
    "resolve",
    "write",
]
