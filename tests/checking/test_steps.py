"""What a check measures is what it said that it would, for every kind of check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acdc_export import checking
from acdc_export.checking import steps
from acdc_export.checking.baseline import Entry, MachineClass, Stored
from acdc_export.evidence import metrics
from acdc_export.evidence.gates import Measurement
from acdc_export.evidence.metrics import Scope
from acdc_export.evidence.parity import Parity
from acdc_export.records.check import Kind

from ..present.examples import example as report_example
from .examples import BUNDLE_FACTS, example, latency

RATIO = Measurement(3.0, 2.9, 3.1)
CHECKS = tuple(Stored("2026-01-01T00:00:00+00:00", replace(RATIO, value=value)) for value in (2.95, 3.0, 3.05))
ENTRY = Entry(MachineClass("A processor", "avx2", 2), "deepsparse", "1.8.0", "1" * 64, 900, 1000, CHECKS)


@pytest.mark.parametrize(
    ("kind", "samples"),
    [("against", True), ("against", False), ("self-test", False), ("baseline", False), ("save", False)],
)
def test_a_check_measures_all_but_what_it_said_that_it_would_not(kind: Kind, samples: bool) -> None:
    names = ("old", "new") if kind in ("against", "self-test") else ("sparse", "dense")
    timed = replace(latency(RATIO, *names), tails={names[1]: RATIO})
    accuracy = report_example().accuracy if samples else None
    static = steps.StaticChecks(BUNDLE_FACTS, None, Parity(64, 1e-7, 1e-3, 2e-7, 1.0), accuracy)
    measured = metrics.values(steps.facts(kind, ENTRY if kind == "baseline" else None, timed, static))
    reasons = metrics.unmeasured(Scope(kind=kind, samples=samples))
    assert {name for name, value in measured.items() if value is None} == set(reasons)


def test_stored_ratios_turn_a_speedup_into_a_ratio() -> None:
    static = steps.StaticChecks(BUNDLE_FACTS, None, Parity(64, 1e-7, 1e-3, 2e-7, 1.0), None)
    facts = steps.facts("baseline", ENTRY, latency(Measurement(2.0, 1.9, 2.1), "sparse", "dense"), static)
    assert facts.p50_ratio is not None
    assert facts.p50_ratio.value == pytest.approx(1.5, rel=1e-3)  # the stored checks let expect 3


def test_a_stored_entry_is_of_the_speedup_over_the_twin() -> None:
    entry = checking.entry(example(kind="save", latency=latency(RATIO, "sparse", "dense")))
    assert entry is not None
    assert entry.checks == (Stored("2026-02-01T00:00:00+00:00", RATIO),)
    died = replace(latency(RATIO, "sparse", "dense"), ratios={}, failure="it died")
    assert checking.entry(example(kind="save", latency=died)) is None
