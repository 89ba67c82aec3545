"""When the network is dense and when it is sparse: the phases of AC/DC, in whole epochs, counted from 0."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..errors import UsageError

Kind = Literal["dense", "sparse"]

_REMEDY = "Schedule.alternating(...) and Schedule.paper(...) build sound ones."

# IST-DASLab/ACDC, configs/neurips: 10 dense epochs, phases of 5, a last dense phase of 10, a final sparse one of 15.
_PAPER_CYCLES = {100: 6, 150: 11, 200: 16}


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs `[start, end)` in which the network is dense or sparse."""

    kind: Kind
    start: int
    end: int

    @property
    def epochs(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Schedule:
    """Phases from epoch 0 to a sparse end. The dense twin leaves at the end of the last dense phase, and then
    trains for as many epochs as the final sparse phase has.

    Raises:
        UsageError: phases that don't follow each other in epochs or in kind, that are empty, or that don't end
            sparse after a dense phase.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        problem = _problem(self.phases)
        if problem:
            raise UsageError(f"Not a schedule of AC/DC: {problem}.", _REMEDY)

    @classmethod
    def alternating(
        cls, warmup: int, sparse: int, dense: int, cycles: int, last_sparse: int, last_dense: int, final_sparse: int
    ) -> Schedule:
        """`warmup` dense epochs; `cycles` times `sparse` and `dense` epochs; then once `last_sparse`, `last_dense`
        and `final_sparse` epochs: a longer dense phase, and a longer sparse one after it."""
        lengths: list[tuple[Kind, int]] = [("dense", warmup)]
        lengths += [("sparse", sparse), ("dense", dense)] * cycles
        lengths += [("sparse", last_sparse), ("dense", last_dense), ("sparse", final_sparse)]
        phases, start = [], 0
        for kind, length in lengths:
            phases.append(Phase(kind, start, start + length))
            start += length
        return cls(tuple(phases))

    @classmethod
    def paper(cls, epochs: int = 100) -> Schedule:
        """The ImageNet schedules of the AC/DC paper (arXiv 2106.12379), of 100, 150 or 200 epochs."""
        if epochs not in _PAPER_CYCLES:
            known = ", ".join(str(known) for known in _PAPER_CYCLES)
            raise UsageError(
                f"The paper has no schedule of {epochs} epochs; it has {known}.",
                "Choose one of these, or give your own numbers to Schedule.alternating(...).",
            )
        return cls.alternating(
            warmup=10, sparse=5, dense=5, cycles=_PAPER_CYCLES[epochs], last_sparse=5, last_dense=10, final_sparse=15
        )

    @property
    def epochs(self) -> int:
        """Epochs that each half is trained for, from its first to its last."""
        return self.final.end

    @property
    def all_epochs(self) -> int:
        """Epochs that both halves take together; those before the twin leaves are common to them."""
        return self.epochs + self.final.epochs

    @property
    def last_dense(self) -> Phase:
        """The phase at whose end the dense twin starts."""
        return self.phases[-2]

    @property
    def final(self) -> Phase:
        """The sparse half's last phase."""
        return self.phases[-1]

    def at(self, epoch: int) -> Phase:
        """The phase of the epoch `epoch`. Raises `UsageError` outside the schedule."""
        for phase in self.phases:
            if phase.start <= epoch < phase.end:
                return phase
        raise UsageError(f"Epoch {epoch} is outside the schedule.", f"It runs from epoch 0 to {self.epochs - 1}.")


def _problem(phases: tuple[Phase, ...]) -> str | None:
    """What is wrong with these phases, or nothing."""
    for phase in phases:
        if phase.kind not in ("dense", "sparse"):
            return f"a phase is '{phase.kind}', neither dense nor sparse"
        if phase.end <= phase.start:
            return f"the {phase.kind} phase at epoch {phase.start} has no epochs"
    if not phases or phases[0].start != 0:
        return "it doesn't start at epoch 0"
    for before, after in pairwise(phases):
        if after.start != before.end:
            return f"a phase ends at epoch {before.end} and the next one starts at {after.start}"
        if after.kind == before.kind:
            return f"two {after.kind} phases meet at epoch {after.start}"
    if phases[-1].kind != "sparse":
        return "it doesn't end with a sparse phase"
    if len(phases) < 2:
        return "no dense phase comes before the final sparse one, so there would be no dense twin"
    return None
