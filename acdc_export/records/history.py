"""What a training run was like: its phases, its epochs and what it cost. A part of pair.json and of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..files import renamed

_STRICT: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class PhaseRecord:
    """A stretch `[start, end)`, in the history's unit, in which the network was dense or sparse."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: Literal["dense", "sparse"]
    start: int
    end: int
    nonzeros: dict[str, int] = field(default_factory=dict)  # at its end, of each pruned weight
    changed: float | None = None  # share of the weights whose mask differs from the sparse phase before, 0 to 1
    regrown: float | None = None  # share of the weights dropped in the sparse phase before that are kept in this one


@dataclass(frozen=True)
class EpochRecord:
    """What was recorded of an epoch (or step); those before the twin leaves count as the sparse half's."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    index: int
    half: Literal["sparse", "dense"]
    kind: Literal["dense", "sparse"]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """FLOPs for one sample (a multiplication and an addition are two), counted as in the AC/DC paper: convolutions,
    linear layers, batch norms, activations and poolings; the backward pass costs twice the forward pass.

    Training is summed over the epochs (or steps) of a half, those before the twin leaves included.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    dense: float  # forward pass
    sparse: float  # forward pass of the sparse half, its zeros left out
    training_dense: float  # of the twin, what is zero in sparse phases left out
    training_sparse: float  # of the sparse half, likewise
    training_multiplied: float  # of either half, as dense kernels run it: zeros are multiplied like all others


@dataclass(frozen=True)
class History:
    """A run from its first epoch to the end of both halves."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    phases: tuple[PhaseRecord, ...]  # of the schedule, which is the sparse half's; the twin leaves before the last
    unit: Literal["epoch", "step"] = "epoch"
    epochs: tuple[EpochRecord, ...] = ()
    cost: Cost | None = None
    totals: dict[str, int] = field(default_factory=dict)  # elements of each pruned weight; empty where nobody counted
    twin_nonzeros: dict[str, int] = field(default_factory=dict)  # at the twin's end, of each pruned weight; likewise
    cost_unknown: str | None = None  # why the cost is not known, as a phrase, where somebody tried to count it

    def zeros(self, nonzeros: Mapping[str, int]) -> float | None:
        """The share of zeros in the pruned weights, 0 to 1, where so many are not zero; None where that isn't known."""
        total = sum(self.totals.values())
        if not total or nonzeros.keys() != self.totals.keys():
            return None
        return 1 - sum(nonzeros.values()) / total


def from_revived(history: dict[str, Any]) -> dict[str, Any]:
    """A history as JSON, from before the share of weights that are `regrown` had that name. For `files.Upgrades`."""
    return {**history, "phases": [renamed(phase, revived="regrown") for phase in history["phases"]]}
