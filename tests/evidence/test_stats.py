"""Intervals against values worked out elsewhere, and against their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acdc_export.evidence import stats


def test_student_by_hand() -> None:
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # s = 1.5811, t(4) = 2.776: half-width 2.776 * 1.5811 / sqrt(5) = 1.963
    assert (mean, low, high) == pytest.approx((3.0, 1.037, 4.963), abs=1e-3)


def test_one_value_says_nothing_about_spread() -> None:
    assert stats.mean_interval([2.0]) == (2.0, -math.inf, math.inf)


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_over_few_launches_covers_what_it_promises(count: int) -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        _, low, high = stats.mean_interval(list(random.normal(size=count)))
        hits += low <= 0 <= high
    assert hits / 4000 == pytest.approx(0.95, abs=0.015)


def test_wilson_by_hand() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662 by the score method
    found = stats.proportion(81, 263)
    assert (found.value, found.low, found.high) == pytest.approx((30.80, 25.53, 36.62), abs=0.01)
    assert stats.proportion(10, 10).high == pytest.approx(100)


def test_paired_drop_by_hand() -> None:
    # Bonett and Price: p12 = (20 + 1) / 102, p21 = (10 + 1) / 102, their difference 0.0980, half-width
    # 1.96 * sqrt((0.2059 + 0.1078 - 0.0980^2) / 102) = 0.1070
    drop = stats.paired_drop(only_first=10, only_second=20, count=100)
    assert (drop.value, drop.low, drop.high) == pytest.approx((10.0, -0.90, 20.51), abs=0.02)


@pytest.mark.parametrize(("count", "first", "second"), [(100, 0.02, 0.05), (900, 0.005, 0.01), (300, 0.1, 0.1)])
def test_the_paired_interval_covers_what_it_promises(count: int, first: float, second: float) -> None:
    random = np.random.default_rng(1)
    cells = random.multinomial(count, [first, second, 1 - first - second], size=4000)
    found = [stats.paired_drop(int(one), int(two), count) for one, two, _ in cells]
    hits = sum(drop.low <= 100 * (second - first) <= drop.high for drop in found)
    assert hits / 4000 >= 0.94


def test_no_disagreement_is_not_certainty() -> None:
    drop = stats.paired_drop(0, 0, 898)
    assert drop.value == 0
    assert 0.1 < drop.high < 0.5
