"""Metrics: each is one entry, which agrees with itself and with the docs."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import acdc_export
from acdc_export.config import DEFAULT_GATES
from acdc_export.evidence.accuracy import Accuracy
from acdc_export.evidence.gates import Measurement
from acdc_export.evidence.metrics import (
    METRICS,
    Facts,
    RunKind,
    Scope,
    timed_values,
    unmeasured,
    values,
    versus_fastest,
)
from acdc_export.evidence.parity import Parity

PACKAGE = Path(acdc_export.__file__).parent
DESIGN = (PACKAGE.parent / "docs" / "design.md").read_text()
UNITS = {"–": "", "bytes": "bytes", "percent": "percent"}

EXPORTS = [
    Scope(kind="export", samples=samples, target="mine", precision=precision, quantized=quantized, controls=controls)
    for samples, (precision, quantized), controls in itertools.product(
        (False, True), (("fp32", False), ("int8", True)), (False, True)
    )
]
CHECKS = [
    *(Scope(kind="against", samples=samples) for samples in (False, True)),
    *(Scope(kind=kind, samples=False) for kind in ("self-test", "baseline", "save")),
]

INTERVALS = (
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3)
    .map(sorted)
    .map(lambda ends: Measurement(value=ends[1], low=ends[0], high=ends[2]))
)
ACCURACIES = st.builds(
    Accuracy,
    samples=st.just(200),
    sparse=INTERVALS,
    dense=INTERVALS,
    drop=INTERVALS,
    agreement=st.just(99.0),
    only_sparse=st.just(1),
    only_dense=st.just(1),
    classes=st.just(()),
)
PARITIES = st.builds(
    Parity, st.just(64), st.floats(0, 1), st.just(1e-3), st.floats(0, 1), st.just(1.0)
)  # samples, required, tolerance, max_abs, agreement


@st.composite
def facts_of(draw: st.DrawFn, scope: Scope) -> Facts:
    """All that a run of this scope finds out where nothing goes wrong, by what an export and the checks measure."""
    counted = Facts(
        parities=tuple(draw(st.lists(PARITIES, min_size=1, max_size=4))),
        zeros=draw(st.integers(0, 1000)),
        total=1000,
        size=draw(st.integers(0, 10**9)),
        supported_ops=draw(st.floats(0, 1)),
        peak_memory=draw(st.integers(1, 10**9)),
        accuracy=draw(ACCURACIES) if scope.samples else None,
    )
    if scope.kind == "export":
        names = ["dense", *(["dense@other"] if scope.controls else [])]
        return replace(
            counted,
            quantization=draw(ACCURACIES) if scope.samples and scope.quantized else None,
            p50_ratio=draw(INTERVALS),
            p99_ratio=draw(INTERVALS),
            speedup=draw(INTERVALS),
            alternatives={name: draw(INTERVALS) for name in names},
        )
    if scope.kind in ("against", "self-test"):
        return replace(counted, p50_ratio=draw(INTERVALS), p99_ratio=draw(INTERVALS))
    return replace(counted, speedup=draw(INTERVALS), p50_ratio=draw(INTERVALS) if scope.kind == "baseline" else None)


@given(st.data())
def test_a_metric_without_a_reason_has_a_value_where_the_facts_are_all_there(data: st.DataObject) -> None:
    scope = data.draw(st.sampled_from([*EXPORTS, *CHECKS]))
    facts = data.draw(facts_of(scope))
    measured, reasons = values(facts), unmeasured(scope)
    assert list(measured) == list(METRICS)
    assert {name for name, value in measured.items() if value is None} <= set(reasons)
    # Without controls, the twin in the same engine is the only dense alternative.
    assert {name for name in reasons if measured[name] is not None} <= {"speedup.vs_control"}


@given(st.data())
def test_sampled_metrics_keep_their_interval_and_counted_ones_have_none(data: st.DataObject) -> None:
    scope = data.draw(st.sampled_from([*EXPORTS, *CHECKS]))
    measured = values(data.draw(facts_of(scope)))
    for name, value in measured.items():
        if value is not None and not METRICS[name].sampled:
            assert value == Measurement.exact(value.value)
        if value is not None:
            assert value.low <= value.value <= value.high


def test_without_facts_nothing_is_measured() -> None:
    assert values(Facts()) == dict.fromkeys(METRICS)


def test_metrics_of_time_need_nothing_else_and_nothing_else_is_of_time() -> None:
    one = Measurement(1.1, 1.0, 1.2)
    time = Facts(p50_ratio=one, p99_ratio=one, speedup=one, alternatives={"dense": one})
    assert {name: value is not None for name, value in values(time).items()} == {
        name: metric.timed for name, metric in METRICS.items()
    }
    assert timed_values(time) == {name: one for name, metric in METRICS.items() if metric.timed}


@pytest.mark.parametrize(
    ("scope", "metric", "reason"),
    [
        (EXPORTS[0], "accuracy.drop", "give samples with --data"),
        (EXPORTS[0], "quantization.drop", "fp32 is not quantized; --precision int8 is"),
        (EXPORTS[2], "quantization.drop", "give samples with --data"),
        (EXPORTS[0], "speedup.vs_control", "the target mine has no controls"),
        (CHECKS[0], "speedup.vs_control", "`check` runs no controls; an export does"),
        (CHECKS[0], "accuracy.sparse", "give samples with --data"),
        (CHECKS[2], "accuracy.sparse", "a self-test is of latency"),
        (CHECKS[3], "latency.p99.ratio", "a baseline holds medians"),
        (CHECKS[4], "latency.p50.ratio", "nothing is compared while ratios are stored"),
    ],
)
def test_the_reason_says_what_to_do_or_why(scope: Scope, metric: str, reason: str) -> None:
    assert unmeasured(scope)[metric] == reason


@pytest.mark.parametrize("kind", ["export", "against"])
def test_with_everything_at_hand_only_what_the_kind_of_run_lacks_is_missing(kind: RunKind) -> None:
    scope = Scope(kind=kind, samples=True, quantized=True, controls=True)
    lacking = {"export": set(), "against": {"speedup", "speedup.vs_control", "quantization.drop"}}[kind]
    assert set(unmeasured(scope)) == lacking


def test_the_fastest_alternative_is_not_known_while_one_of_them_was_not_measured() -> None:
    slow, fast = Measurement(3.0, 2.0, 3.1), Measurement(2.5, 2.4, 2.6)
    assert versus_fastest({"dense": slow, "dense@other": fast}) == Measurement(2.5, 2.0, 2.6)
    assert versus_fastest({"dense": slow, "dense@other": None}) is None
    assert versus_fastest({}) is None


def test_without_pruned_layers_there_is_no_sparsity() -> None:
    assert values(Facts(zeros=0, total=0))["sparsity"] is None
    assert values(Facts(zeros=None, total=10))["sparsity"] is None
    assert values(Facts(zeros=0, total=10))["sparsity"] == Measurement.exact(0.0)


def test_parity_is_that_of_the_worst_output() -> None:
    measured = values(Facts(parities=(Parity(1, 1e-3, 1.0, 2e-3, 1.0), Parity(1, 1e-4, 1.0, 0.5, 1.0))))
    assert measured["parity"] == Measurement.exact(1e-3)
    assert measured["parity.max_abs"] == Measurement.exact(0.5)


def test_the_docs_have_a_row_for_every_metric_with_its_unit() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \| [^|]+ \| ([^|]*) \| [^|]*\|$", DESIGN, re.MULTILINE)
    documented = {name: (UNITS[unit], interval != "counted") for name, unit, interval in rows}
    assert len(rows) == len(documented)
    assert documented == {name: (metric.unit, metric.sampled) for name, metric in METRICS.items()}


def test_no_metric_is_named_elsewhere_but_in_gates_and_where_it_is_shown() -> None:
    """Adding a metric touches its entry and the docs alone."""
    dotted = [name for name in METRICS if "." in name]
    quoted = re.compile("|".join(f'"{re.escape(name)}"' for name in dotted))
    own = PACKAGE / "evidence" / "metrics.py"
    shown = [PACKAGE / "pytest_plugin.py", *(PACKAGE / "present").rglob("*.py")]
    named = {path for path in PACKAGE.rglob("*.py") if quoted.search(path.read_text())}
    assert own in named
    assert named <= {own, *shown}
    assert all(gate.split()[0] in METRICS for gate in DEFAULT_GATES)
