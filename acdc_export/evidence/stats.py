"""The few statistics that evidence needs, each with its source."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .gates import Measurement

# Student's t, two-sided 95 %, by degrees of freedom (1 to 30); from there on the normal distribution's 1.96 is close.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z = 1.959964


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % interval by Student's t; infinite for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = (_T[count - 2] if count - 2 < len(_T) else _Z) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


def proportion(right: int, count: int) -> Measurement:
    """Percent of `count` samples that are right, with Wilson's score interval (1927)."""
    share, spread = right / count, _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Measurement(100 * share, 100 * (centre - half), 100 * (centre + half))


def paired_drop(only_first: int, only_second: int, count: int) -> Measurement:
    """How many points the first of two classifiers falls behind the second on the same `count` samples.

    `only_first` samples were right in the first alone, `only_second` in the second alone. The interval is the
    adjusted Wald interval for paired proportions (Bonett and Price 2012, doi:10.3102/1076998611411915): one
    imaginary sample in each discordant cell, which keeps its coverage where few samples or none are discordant.
    """
    drop = (only_second - only_first) / count
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = second - first
    half = _Z * math.sqrt((first + second - centre**2) / (count + 2))
    return Measurement(100 * drop, 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half))
