"""A pair on a target: both halves through the same steps, side by side; several evaluations are timed together."""

from .comparing import compare
from .quantizing import prepare
from .recording import manifest, report
from .setup import Deployment, Evaluation, Integers
from .static import StaticResults, examine
from .timing import Timed, Timing, Workload, measure, variant_name

__all__ = [
    "Deployment",
    "Evaluation",
    "Integers",
    "StaticResults",
    "Timed",
    "Timing",
    "Workload",
    "compare",
    "examine",
    "manifest",
    "measure",
    "prepare",
    "report",
    "variant_name",
]
