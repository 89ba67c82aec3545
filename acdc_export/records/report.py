"""`report.json`, as frozen dataclasses: everything that was found out, and nothing about how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..evidence.accuracy import Accuracy
from ..evidence.engine import LayerTime
from ..evidence.gates import Judged, Measurement, Verdict
from ..evidence.latency import Latency
from ..evidence.parity import Parity
from ..files import Upgrades, renamed
from ..machine import Machine
from .history import History, from_revived


@dataclass(frozen=True)
class PairFacts:
    """The pair that was exported."""

    name: str
    path: str
    kind: str
    scope: str
    sparsity: float  # aimed at
    metrics: dict[str, dict[str, float]]  # what its training recorded
    history: History | None  # None where nothing is known of its training
    left_dense: dict[str, str] = field(default_factory=dict)  # the layers that the pattern leaves dense, and why
    classes: tuple[str, ...] = ()  # their names, in the order of the labels; empty where the pair has none
    reference: str = ""  # what computed the outputs that parity is judged by


@dataclass(frozen=True)
class TargetFacts:
    """The target, and what its runtime said of itself."""

    name: str
    description: str
    runtime: str
    version: str
    instruction_set: str | None
    license: str
    deployable: bool
    notice: str
    sha256: str  # of the target's folder
    locked: dict[str, str]  # versions in its environment
    computes_in: str | None = None  # what the runtime says that the sparse half computes in, in its own words


@dataclass(frozen=True)
class StepRow:
    """Zeros in all weighted operators after a pass."""

    name: str
    zeros: int
    total: int


@dataclass(frozen=True)
class LayerRow:
    """One weighted operator as deployed; `pruned` where the pattern covers it."""

    name: str
    operator: str
    shape: tuple[int, ...]
    zeros: int
    total: int
    pruned: bool


@dataclass(frozen=True)
class Structure:
    """Zeros and operators of the sparse half as deployed, at the gated batch size."""

    zeros: int | None  # in the pruned layers; None where they could not be found in the graph
    total: int | None
    steps: tuple[StepRow, ...]
    layers: tuple[LayerRow, ...]
    operators: dict[str, int]
    supported_ops: float | None  # None where the engine doesn't tell
    dense_supported_ops: float | None  # of the twin
    unsupported: tuple[str, ...]  # operators that are not on its fast path
    int8_layers: tuple[int, int] | None = None  # in INT8, of how many; None where our schemes quantize nothing
    dense_int8_layers: tuple[int, int] | None = None  # of the twin


@dataclass(frozen=True)
class SizeFacts:
    """Bytes of the model files at the gated batch size."""

    sparse: int
    dense: int


@dataclass(frozen=True)
class Report(Judged):
    """What was found out about one pair on one target on one machine."""

    SCHEMA_VERSION: ClassVar = 5
    DERIVED: ClassVar = ("verdict", "exit_code")

    created: str  # ISO 8601, UTC
    version: str  # of acdc-export
    seconds: float  # that it took
    pair: PairFacts
    target: TargetFacts
    machine: Machine
    precision: str
    gated_batch_size: int
    structure: Structure
    size: SizeFacts
    loading: dict[str, dict[str, float]]  # seconds until a model is in a new process, by batch size and half
    parity: dict[str, dict[str, Parity]]  # by batch size, then "sparse" and "dense"
    accuracy: Accuracy | None
    latency: tuple[Latency, ...]  # by batch size and threads; what the gates judge comes first
    control: str | None  # the fastest dense variant at the gated batch size
    measured: dict[str, Measurement | None]  # by gate metric
    gates: tuple[Verdict, ...]
    # The quantized sparse half and, as "dense", the same half in FP32; None where it is not quantized.
    quantization: Accuracy | None = None
    profile: tuple[LayerTime, ...] = ()  # the sparse half's operators, in order; empty where the runtime doesn't tell
    notes: tuple[str, ...] = field(default=())  # whatever was skipped, unavailable or unusual


def _from_4(report: dict[str, Any]) -> dict[str, Any]:
    """Schema version 5 from version 4, which said `arms`, `revived` and, of the layers left so, `dense`."""
    pair = renamed(report["pair"], dense="left_dense")
    return {
        **report,
        "pair": {**pair, "history": from_revived(pair["history"])},
        "latency": [renamed(latency, arms="variants") for latency in report["latency"]],
    }


UPGRADES: Upgrades = {4: _from_4}
"""How the reports of bundles that older releases made are read."""
