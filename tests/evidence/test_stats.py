"""Intervals agree with values worked out elsewhere, and cover what they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.evidence import stats

# Student's t, two-sided, by degrees of freedom from 1 on, as printed tables have it.
T = {
    0.05: (
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
        2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ),
    0.01: (
        63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169,
        3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845,
        2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750,
    ),
}  # fmt: skip


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("alpha", list(T))
def test_student_by_the_table(alpha: float) -> None:
    quantiles = [stats.t_quantile(alpha, degrees) for degrees in range(1, 31)]
    assert quantiles == pytest.approx(T[alpha], abs=6e-4)


@pytest.mark.parametrize(("alpha", "degrees", "t"), [(1e-4, 1, 6366.2), (1e-4, 5, 11.178), (0.05, 1000, 1.9623)])
def test_student_far_out(alpha: float, degrees: int, t: float) -> None:
    assert stats.t_quantile(alpha, degrees) == pytest.approx(t, rel=1e-4)


def test_normal_by_the_table() -> None:
    assert [stats.normal_quantile(alpha) for alpha in (0.05, 0.01)] == pytest.approx([1.95996, 2.57583], abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 6, 12, 30])
@pytest.mark.parametrize("alpha", list(T))
def test_a_ratio_of_means_has_students_interval_on_its_logarithm(count: int, alpha: float) -> None:
    logs = [float(log) for log in np.random.default_rng(count).normal(0.3, 0.1, size=count)]
    ratio = stats.ratio(logs, mean, alpha)
    half = T[alpha][count - 2] * np.std(logs, ddof=1) / math.sqrt(count)
    assert ratio.value == pytest.approx(math.exp(mean(logs)))
    assert math.log(ratio.high / ratio.value) == pytest.approx(half, rel=0.06)  # resampling is a draw
    assert math.log(ratio.value / ratio.low) == pytest.approx(half, rel=0.06)


def test_one_launch_tells_nothing_of_others() -> None:
    ratio = stats.ratio([math.log(2)], mean, 0.05)
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2), 0, math.inf)


def test_two_launches_that_have_nothing_in_common_tell_as_little() -> None:
    ratio = stats.ratio([0.0, 10.0], mean, 1e-3)
    assert (ratio.low, ratio.high) == (0, math.inf)


def test_the_same_launches_give_the_same_interval() -> None:
    assert stats.ratio([0.1, 0.2, 0.4], mean, 0.05) == stats.ratio([0.1, 0.2, 0.4], mean, 0.05)


def test_the_interval_over_few_launches_covers_what_it_promises() -> None:
    random = np.random.default_rng(0)
    experiments = random.normal(math.log(1.3), 0.05, size=(400, 6)).tolist()
    intervals = [stats.ratio(logs, mean, 0.05, resamples=1000) for logs in experiments]
    hits = sum(ratio.low <= 1.3 <= ratio.high for ratio in intervals)
    assert 0.92 <= hits / len(experiments) <= 0.985


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_looking_three_times_does_not_make_a_wrong_verdict_likelier(alpha: float) -> None:
    shares = {6: 0.5, 9: 0.75, 12: 1.0}
    levels, used = {}, 0.0
    for launches, share in shares.items():
        levels[launches] = stats.spent(share, alpha) - used
        used += levels[launches]
    experiments = np.random.default_rng(1).normal(0, 0.05, size=(300, 12)).tolist()
    wrong = 0
    for logs in experiments:
        looks = [stats.ratio(logs[:launches], mean, level, resamples=1000) for launches, level in levels.items()]
        wrong += any(not look.low <= 1 <= look.high for look in looks)
    assert wrong / len(experiments) <= alpha + 1.64 * math.sqrt(alpha * (1 - alpha) / len(experiments))


@given(alpha=st.floats(1e-4, 0.2), shares=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted))
def test_looks_spend_the_error_little_by_little(alpha: float, shares: list[float]) -> None:
    early, late = (stats.spent(share, alpha) for share in shares)
    assert 0 <= early <= late <= alpha * (1 + 1e-12)
    assert stats.spent(0, alpha) == 0
    assert stats.spent(1, alpha) == alpha


def test_early_looks_spend_little_but_not_nothing() -> None:
    # 2 - 2 Phi(1.96 / sqrt(1/2)) = 2 - 2 Phi(2.7718)
    assert stats.spent(0.5, 0.05) == pytest.approx(0.005575, abs=1e-6)
    assert 0 < stats.spent(0.04, 0.05) < 1e-20


def test_wilson_by_hand() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662 by the score method
    share = stats.proportion(81, 263)
    assert (share.value, share.low, share.high) == pytest.approx((30.80, 25.53, 36.62), abs=0.01)
    assert stats.proportion(10, 10).high == pytest.approx(100)


def test_paired_drop_by_hand() -> None:
    # Bonett and Price: p12 = (20 + 1) / 102, p21 = (10 + 1) / 102, their difference 0.0980, half-width
    # 1.96 * sqrt((0.2059 + 0.1078 - 0.0980^2) / 102) = 0.1070
    drop = stats.paired_drop(only_first=10, only_second=20, count=100)
    assert (drop.value, drop.low, drop.high) == pytest.approx((10.0, -0.90, 20.51), abs=0.02)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize(("count", "first", "second"), [(100, 0.02, 0.05), (900, 0.005, 0.01), (300, 0.1, 0.1)])
def test_the_paired_interval_covers_what_it_promises(count: int, first: float, second: float, alpha: float) -> None:
    random = np.random.default_rng(1)
    tables = random.multinomial(count, [first, second, 1 - first - second], size=4000)
    drops = [
        stats.paired_drop(int(first_only), int(second_only), count, alpha) for first_only, second_only, _ in tables
    ]
    hits = sum(drop.low <= 100 * (second - first) <= drop.high for drop in drops)
    assert hits / 4000 >= 1 - alpha - 0.01


def test_surer_intervals_are_wider() -> None:
    for usual, surer in (
        (stats.proportion(81, 263), stats.proportion(81, 263, 0.01)),
        (stats.paired_drop(10, 20, 100), stats.paired_drop(10, 20, 100, 0.01)),
    ):
        assert surer.low < usual.low < usual.high < surer.high


def test_no_disagreement_is_not_certainty() -> None:
    drop = stats.paired_drop(0, 0, 898)
    assert drop.value == 0
    assert 0.1 < drop.high < 0.5
