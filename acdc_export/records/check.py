"""`check.json`, as frozen dataclasses: what became of a bundle since an older one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..evidence.accuracy import Accuracy
from ..evidence.gates import Judged, Measurement, Verdict
from ..evidence.latency import Latency
from ..machine import Machine

Kind = Literal["against", "self-test", "baseline", "save"]
Where = Literal["model", "export", "engine", "unknown"]


@dataclass(frozen=True)
class BundleFacts:
    """One of the two bundles: what its manifest and report say of it, and what its engine said here."""

    path: str
    name: str
    created: str
    target: str
    target_sha256: str  # of the target's folder as it is here
    runtime: str
    version: str
    instruction_set: str | None
    locked: dict[str, str]  # versions in the environment that it ran in
    precision: str
    size: int  # bytes of the model file
    model_sha256: str  # of the same
    zeros: int | None  # in the pruned layers
    total: int | None
    operators: dict[str, int]
    supported_ops: float | None  # None where the engine doesn't tell
    parity: float  # tolerance that its golden outputs needed here
    max_abs: float

    @property
    def sparsity(self) -> float | None:
        """The share of zeros in the pruned layers."""
        return None if self.zeros is None or not self.total else self.zeros / self.total


@dataclass(frozen=True)
class Cause:
    """What differs between the two, and where it comes from."""

    where: Where
    text: str


@dataclass(frozen=True)
class Check(Judged):
    """What was found out about a bundle, beside an older one, itself, or stored ratios.

    `latency` holds the variants "old" and "new", the sparse halves, in a comparison of bundles and a self-test, and
    "sparse" and "dense" beside stored ratios. `twins` are the dense twins of both bundles, "old" and "new". `accuracy`
    compares the sparse halves of both: its "sparse" is the new one's, and its "dense", the reference, the old one's.
    """

    SCHEMA_VERSION: ClassVar = 3
    DERIVED: ClassVar = ("verdict", "exit_code")

    kind: Kind
    created: str  # ISO 8601, UTC
    version: str  # of acdc-export
    seconds: float  # that it took
    budget: float  # seconds of measuring that were granted
    machine: Machine
    batch_size: int
    new: BundleFacts
    old: BundleFacts | None
    baseline: str | None  # the file of the stored ratios
    latency: Latency
    twins: Latency | None
    accuracy: Accuracy | None
    measured: dict[str, Measurement | None]  # by gate metric
    gates: tuple[Verdict, ...]
    causes: tuple[Cause, ...]
    notes: tuple[str, ...] = ()
