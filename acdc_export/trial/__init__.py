"""A pair on a target: both halves through the same steps, side by side; several trials are timed together."""

from .comparing import compare
from .quantizing import prepare
from .setup import Deployment, Integers, Trial
from .steps import Examined, examine
from .timing import Cell, Timed, Timing, arm_name, measure
from .writing import manifest, report

__all__ = [
    "Cell",
    "Deployment",
    "Examined",
    "Integers",
    "Timed",
    "Timing",
    "Trial",
    "arm_name",
    "compare",
    "examine",
    "manifest",
    "measure",
    "prepare",
    "report",
]
