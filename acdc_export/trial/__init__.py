"""One pair on one target: both halves through the same steps, side by side, and what came of it."""

from .setup import Integers, Trial
from .steps import Findings, conduct
from .writing import manifest, report

__all__ = ["Findings", "Integers", "Trial", "conduct", "manifest", "report"]
