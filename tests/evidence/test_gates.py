"""Gates: what parses, and what is never green."""

from __future__ import annotations

import math

import pytest

from acdc_export.evidence import gates
from acdc_export.evidence.gates import Measurement, Verdict

GATE = gates.parse("speedup >= 1.3")


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        (Measurement(2.0, 1.3, 3.0), "pass"),
        (Measurement(2.0, 1.29, 3.0), "inconclusive"),
        (Measurement(1.0, 0.9, 1.3), "inconclusive"),
        (Measurement(1.0, 0.9, 1.29), "fail"),
        (Measurement.exact(1.3), "pass"),
        (Measurement(math.nan, 1.4, 1.5), "not measured"),
        (Measurement(2.0, -math.inf, math.inf), "inconclusive"),
        (None, "not measured"),
    ],
)
def test_at_least(measured: Measurement | None, status: str) -> None:
    assert gates.judge(GATE, {"speedup": measured}).status == status


@pytest.mark.parametrize(
    ("low", "high", "status"), [(-1.0, 2.0, "pass"), (1.0, 2.1, "inconclusive"), (2.1, 3.0, "fail")]
)
def test_at_most(low: float, high: float, status: str) -> None:
    gate = gates.parse("accuracy.drop <= 2.0")
    assert gates.judge(gate, {"accuracy.drop": Measurement(low, low, high)}).status == status


def test_the_measured_value_is_seen_on_its_side_of_the_limit() -> None:
    gate = gates.parse("sparsity >= 0.9")
    assert gates.judge(gate, {"sparsity": Measurement.exact(0.899996)}).detail == "0.899996"
    assert gates.judge(gate, {"sparsity": Measurement.exact(0.9000049)}).detail == "0.9"


def test_a_metric_that_is_missing_is_not_green() -> None:
    assert gates.judge(GATE, {}).status == "not measured"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speedup", "not of the form"),
        ("speedup == 2", "not of the form"),
        ("speedup >= fast", "not of the form"),
        ("speedup >= 1.3.1", "is not a number"),
        ("spedup >= 1", "did you mean 'speedup'?"),
    ],
)
def test_what_does_not_parse(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="'"):
        gates.parse(text)
    assert said in gates.problems([text])[0]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((), 3),  # nothing was judged
        (("pass",), 0),
        (("pass", "inconclusive"), 4),
        (("inconclusive", "not measured"), 3),
        (("not measured", "fail", "inconclusive"), 1),
    ],
)
def test_exit_codes(statuses: tuple[gates.Status, ...], code: int) -> None:
    assert gates.exit_code(Verdict("g", status, "") for status in statuses) == code
