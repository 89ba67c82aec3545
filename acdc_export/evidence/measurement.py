"""An estimate with its interval: the form that every metric has."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """An estimate with its interval. A thing that was counted, not sampled, has low = value = high."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Measurement:
        return cls(value, value, value)

    def inverse(self) -> Measurement:
        """The measurement of one over the value, which is positive."""
        low, high = (1 / end if end else math.inf for end in (self.high, self.low))
        return Measurement(1 / self.value, low, high)
