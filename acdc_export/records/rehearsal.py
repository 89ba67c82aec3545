"""What a dry run of a pipeline finds out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrunedLayer:
    """The zeros of one layer that the pattern prunes."""

    zeros: int
    total: int


@dataclass(frozen=True)
class Rehearsal:
    """One step of training in each phase, and what comes of it."""

    steps: tuple[tuple[str, float], ...]  # "dense", "sparse" or "twin", and the seconds that a step took, in order
    batch_size: int  # samples of each step
    layers: dict[str, PrunedLayer]  # that the pattern prunes, by the weight's name
    left_dense: dict[str, str]  # the others, by the module's name, and why
