"""What `inspect` finds in a file or folder: the zeros of its weights, and how a pair was trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..patterns import GroupCounts
from .history import History


@dataclass(frozen=True)
class WeightAudit:
    """What one weighted operator's weight holds."""

    position: int  # among the weighted operators, in topological order
    operator: str
    name: str  # of the initializer
    shape: tuple[int, ...]
    zeros: int
    total: int
    patterns: dict[str, GroupCounts]  # by the name of each kind of sparsity that was asked for: "2:4", "block4"
    finite: bool  # neither NaN nor infinity in it

    @property
    def sparsity(self) -> float:
        """Zeros over weights, 0 to 1."""
        return self.zeros / self.total


@dataclass(frozen=True)
class Uncounted:
    """A weight that can't be counted, or several of one operator."""

    operator: str
    name: str  # of the weight where it has one, or of the operator
    reason: str


@dataclass(frozen=True)
class Part:
    """One set of weights: a half of a pair, a model of a bundle, a file."""

    title: str
    weights: tuple[WeightAudit, ...]
    pruned: tuple[str, ...] = ()  # the layers that a pattern covers, where that is known
    uncounted: tuple[Uncounted, ...] = ()  # what holds weights too, and could not be counted


@dataclass(frozen=True)
class Training:
    """How a pair was trained, if that is known, and which layers its pattern leaves dense."""

    name: str  # of the pair
    history: History | None
    left_dense: dict[str, str]  # the layers left dense, and why


@dataclass(frozen=True)
class Inspection:
    """All that a file or folder holds."""

    parts: tuple[Part, ...]
    training: Training | None = None  # None where nothing tells
