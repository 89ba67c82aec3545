"""The few statistics that evidence needs, each with its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from .measurement import Measurement

T = TypeVar("T")

ALPHA = 0.05
"""What all intervals of one run may miss together: 95 % confidence."""

_ENDLESS = 709.0  # logarithms from which on a float can't hold the number


def proportion(right: int, count: int, alpha: float = ALPHA) -> Measurement:
    """Percent of `count` samples that are right, with Wilson's score interval (1927)."""
    z = normal_quantile(alpha)
    share, spread = right / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Measurement(100 * share, 100 * (centre - half), 100 * (centre + half))


def paired_drop(only_first: int, only_second: int, count: int, alpha: float = ALPHA) -> Measurement:
    """How many points the first of two classifiers falls behind the second on the same `count` samples.

    `only_first` samples were right in the first alone, `only_second` in the second alone. The interval is the
    adjusted Wald interval for paired proportions (Bonett and Price 2012, doi:10.3102/1076998611411915): one
    imaginary sample in each discordant workload, which keeps its coverage where few samples or none are discordant.
    """
    drop = (only_second - only_first) / count
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = second - first
    half = normal_quantile(alpha) * math.sqrt((first + second - centre**2) / (count + 2))
    return Measurement(100 * drop, 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half))


def ratio(
    launches: Sequence[T], log_ratio: Callable[[Sequence[T]], float], alpha: float, *, resamples: int = 10_000
) -> Measurement:
    """A ratio over launches, with its 1 - `alpha` interval; `log_ratio` makes its logarithm of any choice of them.

    Launches are resampled (Efron and Tibshirani 1993, ch. 6), because processes differ by more than their rounds
    do (Kalibera and Jones 2013). Their rounds go with them unresampled: the spread of the launches holds that of
    the rounds already, and resampling these too would count it twice (Davison and Hinkley 1997, section 3.8). The
    standard error, corrected for the number of launches, spans Student's t interval on the logarithm: percentiles
    of a few launches end at the launches themselves, and cover too little.

    With a single launch nothing is known of others: the interval is endless.
    """
    count = len(launches)
    estimate = log_ratio(launches)
    if count < 2:
        return Measurement(math.exp(estimate), 0.0, math.inf)
    drawn = np.random.default_rng(0).integers(0, count, (resamples, count)).tolist()
    error = float(np.std([log_ratio([launches[at] for at in row]) for row in drawn]))
    half = t_quantile(alpha, count - 1) * error * math.sqrt(count / (count - 1))
    high = math.exp(estimate + half) if estimate + half < _ENDLESS else math.inf
    return Measurement(math.exp(estimate), math.exp(estimate - half), high)


def normal_quantile(alpha: float) -> float:
    """What a standard normal variable exceeds in size with probability `alpha`."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def t_quantile(alpha: float, degrees: int) -> float:
    """What Student's t with so many degrees of freedom exceeds in size with probability `alpha`."""
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 1 - alpha:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 1 - alpha else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """P(|T| <= t) for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return (2 / math.pi) * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def spent(share: float, alpha: float) -> float:
    """How much of `alpha` looks may have spent when a `share` (0 to 1) of the budget is gone.

    Lan and DeMets (1983) in O'Brien and Fleming's manner: little for early looks, nearly all for the last.
    """
    if not 0 < share < 1:
        return alpha if share >= 1 else 0.0
    return min(alpha, math.erfc(normal_quantile(alpha) / math.sqrt(2 * share)))  # both tails; rounding is no error
