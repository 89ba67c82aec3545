"""A bundle beside an older one: is it still as fast, and if not, what made it slower?"""

from . import baseline
from .contender import Contender, find_target, prepare
from .record import SCHEMA_VERSION, Cause, Check, Kind, Side
from .steps import REGRESSION, STORED, Setup, conduct, gates
from .tables import markdown, render
from .writing import append_history, check_history, check_place, entry, to_json, write

__all__ = [
    "REGRESSION",
    "SCHEMA_VERSION",
    "STORED",
    "Cause",
    "Check",
    "Contender",
    "Kind",
    "Setup",
    "Side",
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
    "to_json",
    "write",
]
