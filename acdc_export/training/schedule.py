"""When the network is dense and when it is sparse: the phases of AC/DC, in epochs or in steps, counted from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..errors import UsageError, nearest

Kind = Literal["dense", "sparse"]
Unit = Literal["epoch", "step"]

_REMEDY = "Schedule.of([...]), Schedule.alternating(...) and Schedule.published(...) build valid ones."


@dataclass(frozen=True)
class Phase:
    """A stretch `[start, end)`, in epochs or steps, in which the network is dense or sparse."""

    kind: Kind
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Schedule:
    """Phases from the first epoch (or step) to a sparse end.

    The dense twin leaves at the end of the last dense phase, and then trains for as long as the final sparse phase
    takes.

    Raises:
        UsageError: phases don't follow each other in time or in kind, are empty, or don't end sparse after a dense
            phase; the unit is unknown.
    """

    phases: tuple[Phase, ...]
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        problem = _problem(self.phases, self.unit)
        if problem:
            raise UsageError(f"Not a schedule of AC/DC: {problem}.", _REMEDY)

    @classmethod
    def of(cls, lengths: Sequence[int], unit: Unit = "epoch") -> Schedule:
        """Make phases of these lengths, one after the other: the first is dense, the next sparse, and so on."""
        phases, start = [], 0
        for index, length in enumerate(lengths):
            phases.append(Phase("sparse" if index % 2 else "dense", start, start + length))
            start += length
        return cls(tuple(phases), unit)

    @classmethod
    def alternating(
        cls,
        warmup: int,
        sparse: int,
        dense: int,
        cycles: int,
        last_sparse: int,
        last_dense: int,
        final_sparse: int,
        unit: Unit = "epoch",
    ) -> Schedule:
        """Make alternating phases with a longer end.

        `warmup` dense epochs (or steps) come first, then `cycles` times `sparse` and `dense` ones. Then follow once
        `last_sparse`, `last_dense` and `final_sparse`: usually a longer dense phase, and a longer sparse one after it.
        """
        return cls.of([warmup, *[sparse, dense] * cycles, last_sparse, last_dense, final_sparse], unit)

    @classmethod
    def published(cls, name: str) -> Schedule:
        """Return one of the AC/DC paper's schedules (arXiv 2106.12379; IST-DASLab/ACDC, configs/neurips), in epochs.

        The names are "imagenet-100", "imagenet-150" and "imagenet-200" (ResNet-50, MobileNetV1), "cifar-freq20"
        (WideResNet-28-10 and ResNet-20, 200 epochs) and "cifar-dense13" (WideResNet-28-10, 225 epochs). The authors'
        `ftdense` runs, which train the dense twin from the end of the last dense phase, are part of every schedule
        here. Raises `UsageError` for another name.
        """
        if name not in PUBLISHED:
            raise UsageError(
                f"There is no published schedule '{name}'{nearest(name, list(PUBLISHED))}.",
                f"There are {', '.join(PUBLISHED)}; Schedule.of([...]) takes your own lengths.",
            )
        return cls.of(PUBLISHED[name])

    @classmethod
    def paper(cls, epochs: int = 100) -> Schedule:
        """Return the AC/DC paper's ImageNet schedule of 100, 150 or 200 epochs. Raises `UsageError` for others."""
        return cls.published(f"imagenet-{epochs}")

    def in_steps(self, steps: int) -> Schedule:
        """Return the same phases in steps; an epoch has `steps`. Raises `UsageError` if they are in steps already."""
        if self.unit == "step":
            raise UsageError("This schedule is in steps already.", "Convert one that is in epochs.")
        return Schedule.of([phase.length * steps for phase in self.phases], "step")

    @property
    def length(self) -> int:
        """The number of epochs (or steps) of each half, from its first to its last."""
        return self.final.end

    @property
    def total(self) -> int:
        """The number of epochs (or steps) of both halves; those before the twin leaves are shared and count once."""
        return self.length + self.final.length

    @property
    def last_dense(self) -> Phase:
        """The phase at whose end the dense twin starts."""
        return self.phases[-2]

    @property
    def final(self) -> Phase:
        """The sparse half's last phase."""
        return self.phases[-1]

    def at(self, index: int) -> Phase:
        """Return the phase of the epoch (or step) `index`. Raises `UsageError` outside the schedule."""
        for phase in self.phases:
            if phase.start <= index < phase.end:
                return phase
        raise UsageError(
            f"The {self.unit} {index} is outside the schedule.", f"It runs from {self.unit} 0 to {self.length - 1}."
        )


# From the authors' lists of the epochs at which they prune and restore. ImageNet has 10 dense epochs, phases of 5, a
# last dense phase of 10 and a final sparse one of 15.
PUBLISHED = {
    "imagenet-100": [10, *[5, 5] * 6, 5, 10, 15],
    "imagenet-150": [10, *[5, 5] * 11, 5, 10, 15],
    "imagenet-200": [10, *[5, 5] * 16, 5, 10, 15],
    "cifar-freq20": [10, *[20, 20] * 4, 30],
    "cifar-dense13": [10, *[20, 13] * 5, 50],
}
"""The lengths of the phases in epochs, by schedule; the first phase is dense."""


def _problem(phases: tuple[Phase, ...], unit: Unit) -> str | None:
    """Say what is wrong with these phases, or return None."""
    if unit not in ("epoch", "step"):
        return f"its unit is '{unit}', neither 'epoch' nor 'step'"
    for phase in phases:
        if phase.kind not in ("dense", "sparse"):
            return f"a phase is '{phase.kind}', neither dense nor sparse"
        if phase.end <= phase.start:
            return f"the {phase.kind} phase at {unit} {phase.start} has no {unit}s"
    if not phases or phases[0].start != 0:
        return f"it doesn't start at {unit} 0"
    for before, after in pairwise(phases):
        if after.start != before.end:
            return f"a phase ends at {unit} {before.end} and the next one starts at {after.start}"
        if after.kind == before.kind:
            return f"two {after.kind} phases meet at {unit} {after.start}"
    if phases[-1].kind != "sparse":
        return "it doesn't end with a sparse phase"
    if len(phases) < 2:
        return "no dense phase comes before the final sparse one, so there would be no dense twin"
    return None
