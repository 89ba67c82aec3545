"""Gates: what parses and where it doesn't, what is judged how, and what is never green."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.evidence import gates
from acdc_export.evidence.gates import Gate, GateError, Measurement, Verdict

SPEEDUP = gates.parse("speedup >= 1.3")
RATIO = "latency.p50.ratio"


def judged(text: str, low: float, high: float, *, final: bool = True) -> str:
    gate = gates.parse(text)
    return gates.judge(gate, {gate.metric: Measurement((low + high) / 2, low, high)}, final=final).status


@pytest.mark.parametrize(
    ("text", "metric", "operator", "limit"),
    [
        ("speedup >= 1.3", "speedup", ">=", 1.3),
        ("speedup>=1.3x", "speedup", ">=", 1.3),
        ("  speedup >= 130 %  ", "speedup", ">=", 1.3),
        ("latency.p50.ratio <= 103%", RATIO, "<=", 1.03),
        ("sparsity >= .9", "sparsity", ">=", 0.9),
        ("supported_ops >= 95%", "supported_ops", ">=", 0.95),  # 95 * 0.01 is more than that
        ("accuracy.sparse >= 95%", "accuracy.sparse", ">=", 95),
        ("accuracy.drop <= 0.5", "accuracy.drop", "<=", 0.5),
        ("accuracy.drop <= 0.5%", "accuracy.drop", "<=", 0.5),  # points of accuracy are percent
        ("accuracy.drop <= -1", "accuracy.drop", "<=", -1),
        ("parity <= 1e-3", "parity", "<=", 0.001),
        ("size <= 12000000", "size", "<=", 12_000_000),
        ("size <= 12MB", "size", "<=", 12_000_000),
        ("size <= 12.5 kB", "size", "<=", 12_500),
        ("size <= 1.1 MB", "size", "<=", 1_100_000),
        ("memory.peak <= 1.5GB", "memory.peak", "<=", 1_500_000_000),
        ("memory.peak <= 2GiB", "memory.peak", "<=", 2 * 1024**3),
        ("memory.peak <= 512 MiB", "memory.peak", "<=", 512 * 1024**2),
    ],
)
def test_what_parses(text: str, metric: str, operator: gates.Operator, limit: float) -> None:
    assert gates.parse(text) == Gate(text.strip(), metric, operator, limit)


@pytest.mark.parametrize(
    ("text", "carets", "said"),
    [
        ("speedup", "       ^", "'<=' or '>=' is missing after 'speedup'"),
        ("speedup 1.3", "        ^^^", "'<=' or '>=' is missing"),
        ("speedup == 2", "        ^^^^", "'<=' or '>=' is missing after 'speedup'"),
        ("speedup >=", "          ^", "a number is missing after 'speedup >='"),
        ("speedup >= fast", "           ^^^^", "a number is missing after 'speedup >='"),
        ("speedup >= 1.3.1", "              ^^", "a gate ends with its limit and unit"),
        ("speedup >= 1.3, size <= 1", "              ^^^^^^^^^^^", "a gate ends with its limit and unit"),
        ("spedup >= 1", "^^^^^^", "unknown metric 'spedup' (did you mean 'speedup'?)"),
        ("size <= 12 Mb", "           ^^", "'Mb' is no unit of size, which takes B, kB, MB, GB, KiB, MiB, GiB or none"),
        ("speedup >= 2MB", "            ^^", "'MB' is no unit of speedup, which takes %, x or none"),
        ("accuracy.drop <= 1x", "                  ^", "'x' is no unit of accuracy.drop, which takes % or none"),
        (">= 1.3", "^", "a gate begins with a metric: accuracy.drop, "),
        ("", "^", "a gate begins with a metric"),
    ],
)
def test_a_caret_stands_under_what_is_wrong(text: str, carets: str, said: str) -> None:
    with pytest.raises(GateError) as caught:
        gates.parse(f"  {text} ")
    problem, shown, marked = str(caught.value).split("\n")
    assert (shown, marked) == (f"  {text}", f"  {carets}")
    assert said in problem
    assert gates.problems([text, "speedup >= 1"]) == [str(caught.value)]


def test_a_metric_that_this_run_does_not_measure_is_an_error_with_its_reason() -> None:
    unmeasured = {"accuracy.drop": "an old bundle holds no logits"}
    with pytest.raises(GateError) as caught:
        gates.parse("accuracy.drop <= 1", unmeasured)
    assert str(caught.value).split("\n") == [
        "accuracy.drop is not measured: an old bundle holds no logits",
        "  accuracy.drop <= 1",
        "  ^^^^^^^^^^^^^",
    ]
    assert gates.problems(["speedup >= 1", "accuracy.drop <= 1"], unmeasured) == [str(caught.value)]


PIECES = [*gates.METRICS, "<=", ">=", "=", "<", "1", "1.5", ".", "-", "e", "e9", "%", "x", "MB", "٣", "_", " ", "\t"]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
def test_any_text_parses_to_what_its_own_text_parses_to_or_is_told_where_it_does_not(text: str) -> None:
    try:
        gate = gates.parse(text)
    except GateError as error:
        start = str(error).rpartition("\n")[2].index("^") - 2
        assert start <= len(text.strip())
    else:
        assert gates.parse(gate.text) == gate


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        (Measurement(2.0, 1.3, 3.0), "pass"),
        (Measurement(2.0, 1.29, 3.0), "inconclusive"),
        (Measurement(1.0, 0.9, 1.3), "inconclusive"),
        (Measurement(1.0, 0.9, 1.29), "fail"),
        (Measurement.exact(1.3), "pass"),
        (Measurement(2.0, 0.0, math.inf), "inconclusive"),
        (Measurement(math.nan, 1.4, 1.5), "not measured"),
        (Measurement(1.4, math.nan, 1.5), "not measured"),
        (Measurement(1.4, 1.4, math.nan), "not measured"),
        (None, "not measured"),
    ],
)
def test_at_least(measured: Measurement | None, status: str) -> None:
    assert gates.judge(SPEEDUP, {"speedup": measured}).status == status


@pytest.mark.parametrize(
    ("low", "high", "status"), [(-1.0, 2.0, "pass"), (-1.0, 2.1, "inconclusive"), (2.1, 3.0, "fail")]
)
def test_at_most(low: float, high: float, status: str) -> None:
    assert judged("accuracy.drop <= 2.0", low, high) == status


def test_a_metric_that_is_missing_is_not_green() -> None:
    assert gates.judge(SPEEDUP, {}).status == "not measured"


@pytest.mark.parametrize(
    ("text", "low", "high", "status"),
    [
        ("latency.p50.ratio <= 1.03", 1.01, 1.05, "fail"),  # slower beyond doubt, and not shown to be tolerable
        ("latency.p50.ratio <= 1.03", 1.00, 1.05, "inconclusive"),  # as fast is possible
        ("latency.p50.ratio <= 1.03", 0.99, 1.05, "inconclusive"),
        ("latency.p50.ratio <= 1.03", 1.01, 1.03, "pass"),
        ("latency.p99.ratio <= 1.1", 1.05, 1.15, "fail"),
        ("accuracy.drop <= 0.5", 0.1, 0.6, "fail"),
        ("accuracy.drop <= 0.5", -0.1, 0.6, "inconclusive"),
        ("latency.p50.ratio <= 0.8", 0.7, 0.9, "inconclusive"),  # demands a change: nothing is tolerated
        ("latency.p50.ratio <= 1", 0.98, 1.02, "inconclusive"),
        ("speedup >= 0.97", 0.9, 0.99, "inconclusive"),  # no metric of change
    ],
)
def test_a_tolerated_change_that_is_certain_has_to_be_shown_tolerable(
    text: str, low: float, high: float, status: str
) -> None:
    assert judged(text, low, high) == status


@pytest.mark.parametrize(("low", "high", "status"), [(1.01, 1.05, "inconclusive"), (1.04, 1.05, "fail")])
def test_while_data_come_in_only_the_limit_decides(low: float, high: float, status: str) -> None:
    assert judged("latency.p50.ratio <= 1.03", low, high, final=False) == status


NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.03, 1.1, 2.0]) | st.floats(allow_nan=False)


@given(
    metric=st.sampled_from(list(gates.METRICS)),
    operator=st.sampled_from(["<=", ">="]),
    limit=NUMBERS.filter(math.isfinite),
    ends=st.lists(NUMBERS, min_size=3, max_size=3).map(sorted),
    final=st.booleans(),
)
def test_no_verdict_is_surer_than_its_interval(
    metric: str, operator: gates.Operator, limit: float, ends: list[float], final: bool
) -> None:
    low, value, high = ends
    within = [end <= limit if operator == "<=" else end >= limit for end in ends]
    verdict = gates.judge(Gate("", metric, operator, limit), {metric: Measurement(value, low, high)}, final=final)
    assert (verdict.status == "pass") == all(within)
    if not any(within):
        assert verdict.status == "fail"
    elif not final:
        assert verdict.status in ("pass", "inconclusive")


@pytest.mark.parametrize(
    ("text", "value", "detail"),
    [
        ("sparsity >= 0.9", 0.899996, "0.899996"),
        ("sparsity >= 0.9", 0.9000049, "0.9"),
        ("parity.max_abs <= 0.1", 0.1000004, "0.1000004"),
        ("parity.max_abs <= 0.1", 0.0999996, "0.1"),
        ("latency.p50.ratio <= 1.03", 1.0263, "1.026"),  # a digit more around 1, where ratios lie
        ("latency.p50.ratio <= 1.03", 1.0300001, "1.0300001"),
        ("size <= 12MB", 11_250_000, "11.2 MB"),
        ("size <= 12MB", 12_000_000, "12 MB"),
        ("size <= 12MB", 12_000_001, "12.000001 MB"),
        ("size >= 12MB", 11_999_999, "11.999999 MB"),
        ("size <= 50kB", 49_999, "50 kB"),
        ("size <= 50kB", 50_001, "50.001 kB"),
        ("memory.peak <= 1GB", 1_234_567_890, "1.23 GB"),
        ("memory.peak <= 2GB", 999_400_000, "999 MB"),
        ("memory.peak <= 2GB", 999_600_000, "1 GB"),
    ],
)
def test_the_measured_value_is_seen_on_its_side_of_the_limit(text: str, value: float, detail: str) -> None:
    gate = gates.parse(text)
    assert gates.judge(gate, {gate.metric: Measurement.exact(value)}).detail == detail


@given(limit=st.floats(0.1, 10), off=st.floats(-1e-5, 1e-5), operator=st.sampled_from(["<=", ">="]))
def test_what_is_shown_would_be_judged_the_same(limit: float, off: float, operator: gates.Operator) -> None:
    gate = Gate("", "parity", operator, limit)
    verdict = gates.judge(gate, {"parity": Measurement.exact(limit + off)})
    assert gates.judge(gate, {"parity": Measurement.exact(float(verdict.detail))}).status == verdict.status


def test_an_interval_is_shown_and_so_is_the_rule_that_failed_it() -> None:
    found = {RATIO: Measurement(1.02, 1.01, 1.05)}
    assert gates.judge(gates.parse("latency.p50.ratio <= 1.1"), found).detail == "1.02 [1.01, 1.05]"
    tolerant = gates.judge(gates.parse("latency.p50.ratio <= 1.03"), found).detail
    assert tolerant == "1.02 [1.01, 1.05]: worse beyond doubt, and more than the limit is possible"


def test_the_inverse_turns_the_interval_round() -> None:
    assert Measurement(2.0, 1.6, 4.0).inverse() == Measurement(0.5, 0.25, 0.625)
    assert Measurement(2.0, 0.0, math.inf).inverse() == Measurement(0.5, 0.0, math.inf)


def test_the_intervals_that_share_the_error_are_counted_once_each() -> None:
    texts = ["speedup >= 1", "speedup >= 1.3", "accuracy.drop <= 1", "size <= 1MB", "parity <= 1e-3"]
    assert gates.sampled(gates.parse(text) for text in texts) == 2
    assert gates.sampled([]) == 0


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
