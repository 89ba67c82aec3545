"""AC/DC training: one run that yields a sparse network and its dense twin. Attach `ACDC` to a loop of your own,
or let `train` run a pipeline.

The names below are loaded when they are first used, so that a schedule can be read where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import extra

if TYPE_CHECKING:
    from .acdc import ACDC, Epoch, Step, TrainingWarning
    from .loop import problems, rehearse, train
    from .pattern import NM, Blocks, Pattern, Unstructured
    from .schedule import Phase, Schedule

_HOMES = {
    "ACDC": "acdc",
    "NM": "pattern",
    "Blocks": "pattern",
    "Epoch": "acdc",
    "Pattern": "pattern",
    "Phase": "schedule",
    "Schedule": "schedule",
    "Step": "acdc",
    "TrainingWarning": "acdc",
    "Unstructured": "pattern",
    "problems": "loop",
    "rehearse": "loop",
    "train": "loop",
}

__all__ = [
    "ACDC",
    "NM",
    "Blocks",
    "Epoch",
    "Pattern",
    "Phase",
    "Schedule",
    "Step",
    "TrainingWarning",
    "Unstructured",
    "problems",
    "rehearse",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("train"):
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
