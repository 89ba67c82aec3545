"""What people read of a check."""

from __future__ import annotations

import pytest

from acdc_export.evidence.gates import Measurement
from acdc_export.present import markdown, text
from acdc_export.records.check import Cause

from ..checking.examples import example


def test_all_that_people_read_says_the_verdict_and_why() -> None:
    found = example("fail", causes=(Cause("model", "It is denser."),))
    for shown in (text(found), markdown(found)):
        assert "bundles/tiny-cpu against bundles/older: FAIL" in shown
        assert "1.050 [1.040, 1.060] times as long as the old one" in shown
        assert "Model: It is denser." in shown
        assert "Note: Something was unsteady." in shown
    assert "| ✗ gate 0 | fail | shown |" in markdown(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "self-test"}, "against itself"),
        ({"kind": "baseline", "baseline": "ci/cpu.json", "old": None, "twins": None}, "as its stored speed-up has it"),
        ({"kind": "save", "baseline": "ci/cpu.json", "old": None, "twins": None,
          "measured": {"speedup": Measurement(3.0, 2.9, 3.1)}}, "the dense twin takes 3.000 [2.900, 3.100]"),
    ],
)  # fmt: skip
def test_every_kind_of_check_can_be_read(changes: dict[str, object], said: str) -> None:
    assert said in " ".join(text(example(**changes)).split())
