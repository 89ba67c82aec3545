"""Everything that people want to read of a report is in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acdc_export.evidence.engine import LayerTime
from acdc_export.evidence.gates import Measurement, Verdict
from acdc_export.present import document, markdown, text

from .examples import example


@pytest.mark.parametrize("status", ["pass", "fail", "not measured", "inconclusive"])
def test_the_headline_is_the_verdict(status: str) -> None:
    shown = document(example(status))  # type: ignore[arg-type]
    assert shown.headline == f"tiny on cpu (deepsparse 1.8.0, fp32): {status.upper()}"
    assert shown.status == status


GATED = (Verdict("speedup.vs_control >= 1.0", "pass", "2 [1.9, 2.1]"),)
AGAINST_TWIN = "3.40x faster [3.30, 3.50] than its dense twin in the same engine"
AGAINST_CONTROL = "2.00x faster [1.90, 2.10] than the fastest dense alternative, the dense twin in onnxruntime"


def test_a_gate_on_the_best_dense_alternative_makes_that_the_headline() -> None:
    measured = {"speedup.vs_control": Measurement(2.0, 1.9, 2.1)}
    report = example(control="dense@onnxruntime", measured=measured)
    assert document(report).headline.endswith("PASS")
    assert f"At batch 16 the sparse half is {AGAINST_TWIN}, and {AGAINST_CONTROL}." in document(report).summary
    gated = replace(report, gates=GATED)
    assert document(gated).headline.endswith(": PASS, 2.00x faster [1.90, 2.10] than the fastest dense alternative")
    assert f"At batch 16 the sparse half is {AGAINST_CONTROL}, and {AGAINST_TWIN}." in document(gated).summary
    slower = replace(gated, measured={"speedup.vs_control": Measurement(0.8, 0.7, 0.9)})
    assert document(slower).headline.endswith(", 1.25x slower [1.11, 1.43] than the fastest dense alternative")
    missing = replace(gated, measured={"speedup.vs_control": None})
    assert document(missing).headline.endswith(": PASS")
    twin = replace(gated, control="dense")
    assert f"At batch 16 the sparse half is {AGAINST_TWIN}." in document(twin).summary


def test_what_the_runtime_says_that_it_computes_in_is_shown_where_it_is_known() -> None:
    report = example()
    assert "Computes in" not in text(report)
    told = replace(report, target=replace(report.target, computes_in="bf16, u8"))
    assert "Computes in: bf16, u8, as deepsparse says." in text(told)
    assert "Computes in: bf16, u8" in markdown(told)


SAID = [
    "3.40x faster [3.30, 3.50] than its dense twin in the same engine",
    "98.44 % of 898 samples",
    "a drop of 0.22 [-0.41, 0.86] points",
    "90.00 % of 1,000",
    "ReduceMean",
    "inf of 1e-03",
    "dense twin in onnxruntime",
    "4.00 [3.90, 4.10]",
    "may NOT be deployed in production",
    "For evaluation only.",
    "The control openvino was not measured",
    "pinned to CPU 0, 1",
]


@pytest.mark.parametrize("said", SAID)
def test_people_read_what_matters(said: str) -> None:
    assert said in text(example())
    assert said in markdown(example())


@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_number(width: int) -> None:
    shown = text(example(), width)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "4.00 [3.90, 4.10]" in shown
    assert ("samples/s" in shown) == (width >= 100)


def test_a_slower_sparse_half_is_called_slower() -> None:
    facts = example().latency[0]
    slower = {**facts.ratios, "dense": Measurement(0.5, 0.4, 0.8)}
    found = example(latency=(replace(facts, ratios=slower),))
    assert "2.00x slower [1.25, 2.50]" in text(found)


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in text(example(accuracy=None))


def test_what_only_some_read_is_in_markdown_alone() -> None:
    for title in ("Zeros in all weighted operators", "Right, by class", "Training, at the end of each phase"):
        assert title in markdown(example())
        assert title not in text(example())


def test_a_profile_is_shown_to_those_who_read_on() -> None:
    profile = (LayerTime("conv1", "Conv", 3e-4), LayerTime("relu|1", "Relu", 1e-4))
    report = example(profile=profile)
    assert "| conv1 | Conv | 0.3000 | 75.00 % |" in markdown(report)
    assert "Time by operator" not in text(report)
    assert "Time by operator" not in markdown(example())


def test_markdown_tables_are_even() -> None:
    tables = [part for part in markdown(example()).split("\n\n") if part.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
