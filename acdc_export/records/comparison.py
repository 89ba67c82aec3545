"""`comparison.json`, as frozen dataclasses: the halves of a pair in several deployments, measured in turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..evidence.gates import Measurement, Status, Verdict, combine, exit_code
from ..evidence.latency import Latency, Variant
from ..machine import Machine


@dataclass(frozen=True)
class Candidate:
    """A half in a deployment: what one could serve.

    `accuracy` is None where it was not measured: of a control, or without samples. A sparse half has the verdict of its
    own report, and `versus_dense`, how many times as fast it is as the fastest dense half of all.
    """

    name: str  # as a variant of the measurement: "sparse@cpu-int8"
    half: str
    target: str
    precision: str
    runtime: str
    version: str
    deployable: bool
    accuracy: Measurement | None
    size: int | None  # bytes of its files
    loading: float | None  # seconds from starting a process to the model in it
    versus_dense: Measurement | None = None
    verdict: Status | None = None
    bundle: str | None = None  # the name of its folder, beside that of the comparison


@dataclass(frozen=True)
class Comparison:
    """What was found out about a pair in several deployments."""

    SCHEMA_VERSION: ClassVar = 2
    DERIVED: ClassVar = ("exit_code", "front", "recommended")

    created: str  # ISO 8601, UTC
    version: str  # of acdc-export
    seconds: float  # that it took
    pair: str
    machine: Machine
    candidates: tuple[Candidate, ...]
    latency: tuple[Latency, ...]  # all candidates against the first variant; the workload that gates judge comes first
    verdicts: tuple[Verdict, ...]  # of each deployment that was asked for, those that can't be had included
    survey: bool  # one deployment that passes is enough
    require_deployable: bool
    missing: dict[str, str] = field(default_factory=dict)  # what could not be compared, and why
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The candidate that the others' speed is held against."""
        return next(iter(self.latency[0].variants), "")

    @property
    def exit_code(self) -> int:
        """0 if every deployment that was asked for passed; of a survey, if there is one to recommend."""
        codes = [exit_code([verdict]) for verdict in self.verdicts]
        return 0 if self.survey and self.recommended else combine(codes)

    @property
    def by_speed(self) -> tuple[Candidate, ...]:
        """The candidates, the slowest in the workload that gates judge first."""
        return tuple(sorted(self.candidates, key=lambda candidate: -self._p50(candidate.name)))

    @property
    def front(self) -> tuple[str, ...]:
        """The candidates that no other beats in both accuracy and median latency: the Pareto front, fastest first."""
        known = [
            candidate
            for candidate in self.candidates
            if candidate.accuracy is not None and self.variant(candidate.name)
        ]
        kept = [candidate for candidate in known if not any(self._beats(other, candidate) for other in known)]
        return tuple(sorted((candidate.name for candidate in kept), key=self._p50))

    @property
    def recommended(self) -> str | None:
        """The fastest sparse half that passed its gates and may be deployed.

        Where none may, it is the fastest that passed; nothing, where what is recommended is required to be deployable.
        """
        deployable = [candidate.name for candidate in self._passed if candidate.deployable]
        others = [] if self.require_deployable else [candidate.name for candidate in self._passed]
        return min(deployable or others, key=self._p50, default=None)

    @property
    def faster_in_evaluation(self) -> str | None:
        """The sparse half that would be recommended if licenses didn't matter, where that is another one."""
        fastest = min((candidate.name for candidate in self._passed), key=self._p50, default=None)
        return None if fastest == self.recommended else fastest

    @property
    def _passed(self) -> list[Candidate]:
        """The sparse halves that passed their gates."""
        return [
            candidate
            for candidate in self.candidates
            if candidate.verdict == "pass" and self.variant(candidate.name) is not None
        ]

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def variant(self, name: str) -> Variant | None:
        """What a candidate took in the workload that gates judge; None where nothing was measured."""
        return self.latency[0].variants.get(name)

    def better_dense(self, name: str) -> tuple[str, ...]:
        """The dense candidates that beat this candidate in both accuracy and latency, the fastest first."""
        candidate = self.candidate(name)
        better = [other.name for other in self.candidates if other.half == "dense" and self._beats(other, candidate)]
        return tuple(sorted(better, key=self._p50))

    def _beats(self, candidate: Candidate, other: Candidate) -> bool:
        if (
            candidate.accuracy is None
            or other.accuracy is None
            or not (self.variant(candidate.name) and self.variant(other.name))
        ):
            return False
        faster, righter = (
            self._p50(other.name) - self._p50(candidate.name),
            candidate.accuracy.value - other.accuracy.value,
        )
        return faster >= 0 and righter >= 0 and (faster > 0 or righter > 0)

    def _p50(self, name: str) -> float:
        variant = self.variant(name)
        return variant.p50 if variant else float("inf")
