"""report.json is the source: it survives the round trip, and everything people read is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from acdc_export.errors import BundleError
from acdc_export.evidence.gates import Measurement
from acdc_export.files import read_record, write_json
from acdc_export.present.markdown import markdown
from acdc_export.present.terminal import plain, render
from acdc_export.records.report import DERIVED, SCHEMA_VERSION, Report, to_json

from .examples import example


def test_json_round_trip_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", to_json(example()))
    found = read_record(tmp_path / "report.json", Report, SCHEMA_VERSION, BundleError, "", ignore=DERIVED)
    assert found == example()


@pytest.mark.parametrize(
    ("statuses", "verdict", "code"),
    [
        (("pass", "pass"), "pass", 0),
        (("pass", "fail", "not measured"), "fail", 1),
        (("not measured", "inconclusive"), "not measured", 3),
        (("pass", "inconclusive"), "inconclusive", 4),
    ],
)
def test_verdicts(statuses: tuple, verdict: str, code: int) -> None:
    found = example(*statuses)
    assert (found.verdict, found.exit_code, found.passed) == (verdict, code, code == 0)
    assert to_json(found)["exit_code"] == code
    assert f"tiny on cpu (deepsparse 1.8.0, fp32): {verdict.upper()}" in str(found)


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
    assert said in str(example())
    assert said in markdown(example())


@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_number(width: int) -> None:
    shown = plain(render(example(), width), width)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "4.00 [3.90, 4.10]" in shown
    assert ("samples/s" in shown) == (width >= 100)


def test_a_slower_sparse_half_is_called_slower() -> None:
    facts = example().latency[0]
    slower = {**facts.ratios, "dense": Measurement(0.5, 0.4, 0.8)}
    found = example(latency=(replace(facts, ratios=slower),))
    assert "2.00x slower [1.25, 2.50]" in str(found)


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in str(example(accuracy=None))


def test_markdown_tables_are_even() -> None:
    tables = [part for part in markdown(example()).split("\n\n") if part.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
