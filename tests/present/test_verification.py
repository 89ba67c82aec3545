"""What people read of a verification."""

from __future__ import annotations

from acdc_export.evidence.gates import Verdict
from acdc_export.present import text
from acdc_export.records import to_json
from acdc_export.records.verification import Verification

FOUND = Verification(
    "bundles/tiny", (Verdict("files", "pass", "5 unaltered"), Verdict("gates", "fail", "on X")), ("It is slow.",)
)


def test_each_check_has_its_mark() -> None:
    lines = [line.split() for line in text(FOUND).splitlines()]
    assert lines[0] == ["bundles/tiny", "on", "this", "machine:", "FAIL"]
    assert ["✓", "files", "pass", "5", "unaltered"] in lines
    assert ["✗", "gates", "fail", "on", "X"] in lines
    assert ["Note:", "It", "is", "slow."] in lines


def test_it_is_judged_by_its_checks() -> None:
    assert (FOUND.verdict, FOUND.exit_code, FOUND.passed) == ("fail", 1, False)
    assert to_json(FOUND) == {
        "exit_code": 1,
        "bundle": "bundles/tiny",
        "checks": [
            {"gate": "files", "status": "pass", "detail": "5 unaltered"},
            {"gate": "gates", "status": "fail", "detail": "on X"},
        ],
        "notes": ["It is slow."],
    }
