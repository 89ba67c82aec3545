"""The few statistics that evidence needs, with their sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from .measurement import Measurement

T = TypeVar("T")

ALPHA = 0.05
"""The error that all intervals of one run may make together: 95 % confidence."""

_OVERFLOW = 709.0  # a float can't hold the exponential of more


def proportion(right: int, count: int, alpha: float = ALPHA) -> Measurement:
    """The percentage of `right` among `count` samples, with Wilson's score interval (1927)."""
    z = normal_quantile(alpha)
    share, spread = right / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Measurement(100 * share, 100 * (centre - half), 100 * (centre + half))


def paired_drop(only_first: int, only_second: int, count: int, alpha: float = ALPHA) -> Measurement:
    """The percentage points by which the first of two classifiers falls behind the second on the same samples.

    Of `count` samples, `only_first` were right in the first alone, `only_second` in the second alone. The interval is
    the adjusted Wald interval for paired proportions (Bonett and Price 2012, doi:10.3102/1076998611411915). It adds one
    imaginary sample to each discordant cell of the table, which keeps its coverage where few samples or none are
    discordant.
    """
    drop = (only_second - only_first) / count
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = second - first
    half = normal_quantile(alpha) * math.sqrt((first + second - centre**2) / (count + 2))
    return Measurement(100 * drop, 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half))


def ratio(
    launches: Sequence[T], log_ratio: Callable[[Sequence[T]], float], alpha: float, *, resamples: int = 10_000
) -> Measurement:
    """A ratio over launches, with its 1 - `alpha` interval; `log_ratio` computes its logarithm from any choice of them.

    Launches are resampled (Efron and Tibshirani 1993, ch. 6), because processes differ by more than their rounds
    do (Kalibera and Jones 2013). Their rounds stay with them and are not resampled: the spread of the launches holds
    that of the rounds already, and resampling these too would count it twice (Davison and Hinkley 1997, section 3.8).
    The standard error, corrected for the number of launches, spans Student's t interval on the logarithm: percentiles
    of a few launches end at the launches themselves, and cover too little.

    The interval over a single launch is endless, since it tells nothing of others.
    """
    count = len(launches)
    estimate = log_ratio(launches)
    if count < 2:
        return Measurement(math.exp(estimate), 0.0, math.inf)
    choices = np.random.default_rng(0).integers(0, count, (resamples, count)).tolist()
    error = float(np.std([log_ratio([launches[index] for index in choice]) for choice in choices]))
    half = t_quantile(alpha, count - 1) * error * math.sqrt(count / (count - 1))
    high = math.exp(estimate + half) if estimate + half < _OVERFLOW else math.inf
    return Measurement(math.exp(estimate), math.exp(estimate - half), high)


def normal_quantile(alpha: float) -> float:
    """The size that a standard normal variable exceeds with probability `alpha`, on both sides together."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def t_quantile(alpha: float, degrees: int) -> float:
    """The size that Student's t with `degrees` of freedom exceeds with probability `alpha`, on both sides together."""
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 1 - alpha:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 1 - alpha else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """Return P(|T| <= t) for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
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
    """How much of `alpha` all looks may have spent when a `share` (0 to 1) of the budget is spent.

    The function is that of Lan and DeMets (1983) in O'Brien and Fleming's manner: it spends little on early looks and
    nearly all on the last.
    """
    if not 0 < share < 1:
        return alpha if share >= 1 else 0.0
    return min(alpha, math.erfc(normal_quantile(alpha) / math.sqrt(2 * share)))  # both tails; rounding is no error
