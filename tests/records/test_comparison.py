"""Which deployment to serve, by the record alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.evidence.gates import Measurement, Verdict

from ..present.comparison_examples import P50, change, example, workload


def test_the_front_is_of_those_that_none_beats() -> None:
    assert example().front == ("sparse@cpu-int8", "sparse@cpu", "dense@cpu-int8", "dense@onnxruntime")


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(80, 86)), min_size=7, max_size=7))
def test_every_candidate_is_on_the_front_or_beaten_by_one_that_is(places: list[tuple[int, int]]) -> None:
    found, variants = example(), workload().variants
    for name, (p50, right) in zip(P50, places, strict=True):
        found = change(found, name, accuracy=Measurement(right, right - 1, right + 1))
        variants = {**variants, name: replace(variants[name], p50=float(p50))}
    found = replace(found, latency=(replace(workload(), variants=variants),))
    place = dict(zip(P50, places, strict=True))
    for name, (p50, right) in place.items():
        beaten = [
            other
            for other in found.front
            if place[other][0] <= p50 and place[other][1] >= right and place[other] != (p50, right)
        ]
        assert (name in found.front) != bool(beaten)


@pytest.mark.parametrize(
    ("survey", "statuses", "code"),
    [
        (False, ("pass", "pass"), 0),
        (False, ("pass", "fail"), 1),
        (False, ("pass", "not measured"), 3),
        (False, ("pass", "inconclusive"), 4),
        (True, ("pass", "fail"), 0),
    ],
)
def test_each_that_was_named_has_to_pass_and_one_of_a_survey(
    survey: bool, statuses: tuple[str, ...], code: int
) -> None:
    verdicts = tuple(Verdict(str(at), status, "") for at, status in enumerate(statuses))  # type: ignore[arg-type]
    assert example(survey=survey, verdicts=verdicts).exit_code == code


def test_a_survey_without_one_that_passed_fails() -> None:
    found = example(survey=True, verdicts=(Verdict("cpu", "fail", ""),))
    for name in P50:
        found = change(found, name, verdict="fail")
    assert found.exit_code == 1
