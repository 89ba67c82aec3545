"""report.json is the source: it survives the round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from acdc_export.errors import BundleError
from acdc_export.files import read_record, write_json
from acdc_export.records import to_json
from acdc_export.records.report import Report

from ..present.examples import example


def test_json_round_trip_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", to_json(example()))
    found = read_record(tmp_path / "report.json", Report, Report.SCHEMA_VERSION, BundleError, "", ignore=Report.DERIVED)
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


def test_the_text_of_a_report_is_its_verdict_and_a_line_a_gate() -> None:
    """What `assert report.passed, report` shows."""
    lines = str(example("pass", "fail")).splitlines()
    assert lines == ["FAIL", "  pass: gate 0 (shown)", "  fail: gate 1 (shown)"]


def test_the_json_begins_with_its_version_and_what_follows_from_the_rest() -> None:
    assert list(to_json(example()))[:4] == ["schema_version", "verdict", "exit_code", "created"]
