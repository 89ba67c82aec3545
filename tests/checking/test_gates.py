"""Which gates a check is judged by, and which it refuses."""

from __future__ import annotations

import pytest

from acdc_export.checking import REGRESSION, STORED, gates
from acdc_export.errors import UsageError
from acdc_export.records.check import Kind


def texts(kind: Kind, *named: str, data: bool = False, target: tuple[str, ...] = ()) -> list[str]:
    return [gate.text for gate in gates(kind, named, data=data, target=target, tolerance=1e-3)[0]]


def test_defaults_are_for_what_is_measured() -> None:
    assert texts("against") == [REGRESSION, "parity <= 0.001"]
    assert texts("against", data=True) == [REGRESSION, "accuracy.drop <= 1.0", "parity <= 0.001"]
    assert texts("baseline") == [STORED, "parity <= 0.001"]
    assert texts("save") == ["parity <= 0.001"]


def test_named_gates_take_the_place_of_the_default_and_not_of_the_targets() -> None:
    found = texts("against", "size <= 1MB", target=("supported_ops >= 1.0",))
    assert found == ["size <= 1MB", "supported_ops >= 1.0", "parity <= 0.001"]


def test_a_gate_of_the_target_that_can_not_be_judged_is_said() -> None:
    found, notes = gates("against", (), data=False, target=("speedup >= 1.5",), tolerance=1e-3)
    assert [gate.metric for gate in found] == ["latency.p50.ratio", "parity"]
    assert "'speedup >= 1.5' was not judged" in notes[0]
    assert not gates("baseline", (), data=False, target=("speedup >= 1.5",), tolerance=1e-3)[1]


@pytest.mark.parametrize(
    ("kind", "gate"),
    [
        ("against", "speedup >= 2"),
        ("against", "speedup.vs_control >= 1"),
        ("against", "accuracy.drop <= 1"),
        ("self-test", "accuracy.drop <= 1"),
        ("baseline", "latency.p99.ratio <= 1.1"),
        ("save", "latency.p50.ratio <= 1.03"),
    ],
)
def test_what_is_not_measured_is_a_mistake(kind: Kind, gate: str) -> None:
    with pytest.raises(UsageError, match="is not measured") as caught:
        texts(kind, gate)
    assert "\n  ^^^^^" in str(caught.value)
