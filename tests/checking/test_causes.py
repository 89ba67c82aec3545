"""A denser model, a worse export and a slower engine are told apart."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.checking import causes
from acdc_export.evidence.gates import Measurement

from .examples import BUNDLE_FACTS, latency

SLOWER, SAME, FASTER = Measurement(1.1, 1.08, 1.12), Measurement(1.0, 0.99, 1.01), Measurement(0.9, 0.88, 0.92)


def found(new: object, sparse: Measurement = SLOWER, twins: Measurement | None = SAME) -> list[str]:
    twin = latency(twins) if twins else None
    return [cause.where for cause in causes.find(new, BUNDLE_FACTS, latency(sparse), twin)]  # type: ignore[arg-type]


def test_a_denser_model() -> None:
    (model, twins) = causes.find(replace(BUNDLE_FACTS, zeros=800), BUNDLE_FACTS, latency(SLOWER), latency(SAME))
    assert model.where == "model"
    assert "denser: 80.00 % zeros" in model.text
    assert "nothing says that the engine changed" in twins.text


def test_a_worse_export() -> None:
    worse = replace(BUNDLE_FACTS, operators={"Conv": 5, "Relu": 4, "ReduceMean": 1}, supported_ops=0.9)
    assert found(worse) == ["export", "export", "engine"]
    assert "ReduceMean 0 → 1" in causes.find(worse, BUNDLE_FACTS, latency(SLOWER), None)[0].text


def test_a_slower_engine_slows_the_twin_too() -> None:
    newer = replace(BUNDLE_FACTS, version="1.9.0", locked={**BUNDLE_FACTS.locked, "deepsparse": "1.9.0"})
    told = causes.find(newer, BUNDLE_FACTS, latency(SLOWER), latency(SLOWER))
    assert [cause.where for cause in told] == ["engine", "engine", "engine"]
    assert "deepsparse 1.8.0 → 1.9.0" in told[1].text
    assert "the engine, is slower" in told[2].text


def test_a_worse_export_that_slows_the_twin_too_is_not_laid_to_the_engine() -> None:
    worse = replace(BUNDLE_FACTS, operators={"Conv": 5, "Relu": 4, "ReduceMean": 1})
    told = causes.find(worse, BUNDLE_FACTS, latency(SLOWER), latency(SLOWER))
    assert [cause.where for cause in told] == ["export", "unknown"]
    assert "network, export or engine, is slower" in told[1].text
    wider = causes.find(replace(BUNDLE_FACTS, total=4000, zeros=3600), BUNDLE_FACTS, latency(SLOWER), latency(SLOWER))
    assert [cause.where for cause in wider] == ["model", "unknown"]


def test_a_slowdown_without_a_trace_is_said_to_be_one() -> None:
    assert found(BUNDLE_FACTS) == ["engine", "unknown"]
    assert found(BUNDLE_FACTS, twins=None) == ["unknown"]


def test_a_slower_twin_is_trace_enough() -> None:
    assert found(BUNDLE_FACTS, twins=SLOWER) == ["engine"]


def test_nothing_is_made_up_where_nothing_changed() -> None:
    assert found(BUNDLE_FACTS, sparse=SAME) == ["engine"]
    assert found(BUNDLE_FACTS, sparse=FASTER, twins=None) == []


def test_a_faster_engine_that_hides_a_denser_model() -> None:
    told = causes.find(replace(BUNDLE_FACTS, zeros=500), BUNDLE_FACTS, latency(SAME), latency(FASTER))
    assert "denser" in told[0].text
    assert "the engine, is faster" in told[1].text


def test_another_definition_of_the_target() -> None:
    newer = replace(BUNDLE_FACTS, target_sha256="1" * 64)
    assert "defined otherwise" in causes.find(newer, BUNDLE_FACTS, latency(SAME), None)[0].text
