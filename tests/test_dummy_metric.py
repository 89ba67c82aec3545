"""A new metric is one entry: an export and a check parse, refuse, compute and judge it without another change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acdc_export import checking
from acdc_export.checking import Check, Setup
from acdc_export.checking.compiled import Admitted
from acdc_export.config import load_target
from acdc_export.errors import UsageError
from acdc_export.evaluation import recording, resolving
from acdc_export.evidence import gates, metrics
from acdc_export.evidence.engine import Engine
from acdc_export.evidence.gates import Measurement
from acdc_export.evidence.latency import Plan
from acdc_export.evidence.metrics import METRICS, Facts, Metric, Scope
from acdc_export.evidence.parity import Parity, compare
from acdc_export.machine import Machine
from acdc_export.pair import Half
from acdc_export.progress import SILENT
from acdc_export.records.check import BundleFacts

from .checking.examples import BUNDLE_FACTS, latency
from .evidence.fakes import Fake
from .present.examples import example as report_example

GATE = "parity.agreement >= 99%"
REASON = "nobody wants it of a self-test, nor of this target"


def _agreement(facts: Facts) -> Measurement | None:
    return Measurement.exact(min(parity.top1_agreement for parity in facts.parities)) if facts.parities else None


def _missing(scope: Scope) -> str | None:
    return REASON if scope.kind == "self-test" or scope.target == "onnxruntime" else None


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("fraction of samples whose largest output is the same", _agreement, _missing)
    monkeypatch.setitem(METRICS, "parity.agreement", metric)


def test_an_export_says_before_it_runs_that_it_will_not_measure_it() -> None:
    cpu, other = (resolving._scope(load_target(name), "fp32", True) for name in ("cpu", "onnxruntime"))
    assert resolving._parsed([GATE], [metrics.unmeasured(cpu), metrics.unmeasured(other)])[0].limit == 0.99
    with pytest.raises(UsageError, match=f"parity.agreement is not measured: {REASON}"):
        resolving._parsed([GATE], [metrics.unmeasured(other)])


def test_an_export_measures_and_judges_it() -> None:
    report = report_example()
    halves = {half: Parity(64, 1e-7, 1e-3, 1e-6, agreement) for half, agreement in (("sparse", 1.0), ("dense", 0.98))}
    evaluation: Any = SimpleNamespace(gated=16, asked_controls=(), deployment=SimpleNamespace(name="cpu"))
    results: Any = SimpleNamespace(
        evaluation=evaluation,
        accuracy=report.accuracy,
        quantization=None,
        parity={"16": halves},
        structure=report.structure,
        models={("sparse", 16): SimpleNamespace(size=1000)},
    )
    timed: Any = SimpleNamespace(latency=(latency(Measurement(2.0, 1.9, 2.1), "sparse", "dense"),))
    measured = metrics.values(recording.facts(results, timed))
    assert measured["parity.agreement"] == Measurement.exact(0.98)
    assert measured["speedup"] == measured["speedup.vs_control"] == Measurement(2.0, 1.9, 2.1)
    assert measured["memory.peak"] == Measurement.exact(100_000_000)
    assert measured["size"] == Measurement.exact(1000)
    assert gates.judge(gates.parse(GATE), measured).status == "fail"


@dataclass(frozen=True)
class FakeBundle:
    """A loaded bundle without files and runtime: its engine answers twice its inputs, and `off` for the first row."""

    off: float = 0.0
    batch_size: int = 4
    admitted: Admitted = field(default_factory=Admitted)  # nothing of it is compiled

    @property
    def bundle(self) -> Any:
        return SimpleNamespace(manifest=SimpleNamespace(inputs=(), outputs=(), tolerance=1e-3), path="bundles/fake")

    def admit(self, *_: object) -> FakeBundle:
        return self

    def environment_notes(self) -> list[str]:
        return []

    def open(self, half: Half = "sparse") -> Engine:
        return Fake(lambda x: 2 * x)

    def inputs(self) -> dict[str, np.ndarray]:
        return {"x": np.eye(4, dtype=np.float32)}

    def golden_parity(self, engine: Engine) -> Parity:
        golden = 2 * np.eye(4, dtype=np.float32)
        golden[0, 1] += self.off
        return compare(engine.run(self.inputs()), {"logits": golden}, 1e-3)

    def facts(self, engine: Engine, golden: Parity) -> BundleFacts:
        return replace(BUNDLE_FACTS, parity=golden.required, max_abs=golden.max_abs)


def check_of(new: FakeBundle, old: FakeBundle) -> Check:
    chosen, _ = checking.gates("against", [GATE], data=False, target=(), tolerance=1e-3)
    bundles: Any = {"new": new, "old": old}
    setup = Setup(
        kind="against",
        stored=None,
        source=None,
        data=None,
        gates=tuple(chosen),
        plan=Plan(budget=0.2, launch=0.05, most=2),
        machine=Machine("A processor", (0, 1), 2**34, "Linux 6"),
        progress=SILENT,
        twins=False,
        **bundles,
    )
    return checking.conduct(setup)[0]


def test_a_check_says_before_it_runs_that_it_will_not_measure_it() -> None:
    with pytest.raises(UsageError, match=f"parity.agreement is not measured: {REASON}"):
        checking.gates("self-test", [GATE], data=False, target=(), tolerance=1e-3)
    _, notes = checking.gates("self-test", [], data=False, target=(GATE,), tolerance=1e-3)
    assert notes == [f"The target's gate '{GATE}' was not judged: {REASON}."]


def test_a_check_measures_and_judges_it_of_the_new_bundle() -> None:
    """The old bundle's golden outputs, which don't agree, are only noted."""
    check = check_of(FakeBundle(), FakeBundle(off=9.0))
    assert check.measured["parity.agreement"] == Measurement.exact(1.0)
    assert [gate.status for gate in check.gates if gate.gate == GATE] == ["pass"]
    assert any("The old bundle's golden outputs" in note for note in check.notes)
    worse = check_of(FakeBundle(off=9.0), FakeBundle())
    assert worse.measured["parity.agreement"] == Measurement.exact(0.75)
    assert {gate.gate: gate.status for gate in worse.gates} == {GATE: "fail", "parity <= 0.001": "fail"}
