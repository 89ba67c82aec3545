"""Whether samples are prepared as the inputs that a network is known to take: scaled and normalised in the same way.

Samples of another distribution are honest: a folder of one class, darker photos, longer sentences. So the limits are
wide, and what honest samples can be is let pass:

- A mean or a standard deviation is far off at `FAR` times, of the whole input or of one channel of an image.
- Numbers that are never negative are of another scale than numbers of which many are: 0 to 1 against normalised.
- An input of a few values, such as a mask, is judged by their range alone; a constant one is not judged.
- Whole numbers, such as token ids, may not be negative where they never were: that is no entry of a table.

The order of the channels (BGR for RGB), mirrored images and small shifts can't be told from honest samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAR = 4.0
"""Times as wide, or standard deviations away from the mean, as the known inputs: not prepared as those were."""

_ROWS = 64  # from which on a stream is judged before its end, and then only for what is too wide or too far
_FEW = 16  # different values at most of an input that is a code, such as a mask or a category
_LOOKED_AT = 4096  # values that are looked at for this
_MANY = 1000  # values from which on it says something that none is negative
_SHARE = 0.1  # of values that are negative: so many that it is no accident
_CHANNELS = 4  # at most, of an image


@dataclass(frozen=True)
class Moments:
    """What is known of the values of an input, or of one of its channels."""

    count: int
    mean: float
    squares: float  # sum of the squared distances from the mean
    low: float
    high: float
    negative: int  # values below 0

    @property
    def deviation(self) -> float:
        return float(np.sqrt(self.squares / self.count))

    def joined(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * other.count / count,
            self.squares + other.squares + apart**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
            self.negative + other.negative,
        )

    def __str__(self) -> str:
        return (
            f"from {self.low:.3g} to {self.high:.3g}, with a mean of {self.mean:.3g} and a standard deviation of "
            + (f"{self.deviation:.3g}")
        )


class Likeness:
    """Compares a stream of samples with the known values of an input, as it goes by."""

    def __init__(self, known: NDArray[Any]) -> None:
        self._known = _moments(known)
        parts = _channels(known)
        self._codes = [_is_code(part) for part in ([known, *parts] if len(parts) > 1 else parts)]
        self._whole = known.dtype.kind in "biu"
        self._given: list[Moments] = []
        self._rows = 0

    def add(self, array: NDArray[Any]) -> None:
        """Take in a batch of at least one row, of the known input's shape."""
        moments = _moments(array)
        joined = [old.joined(new) for old, new in zip(self._given, moments, strict=bool(self._given))]
        self._given = joined or moments
        self._rows += len(array)

    def problem(self, *, finished: bool) -> tuple[str, Moments, Moments] | None:
        """What is unlike: which part of the input, what was given and what is known; None where all may be honest.

        Before a stream has `finished`, its beginning is judged only for what more samples can't mend.
        """
        if not self._given or not (finished or self._rows >= _ROWS):
            return None
        parts = zip(self._given, self._known, self._codes, strict=True)
        for index, (given, known, code) in enumerate(parts):
            if _unlike(given, known, code=code, whole=self._whole, finished=finished):
                return (f"channel {index - 1} of " if index else ""), given, known
        return None


def _unlike(given: Moments, known: Moments, *, code: bool, whole: bool, finished: bool) -> bool:
    width = known.high - known.low
    if not width:
        return False  # what is the same everywhere has no scale
    if whole and given.low < 0 <= known.low:
        return True
    if code:
        return given.low < known.low - FAR * width or given.high > known.high + FAR * width
    if given.deviation > FAR * known.deviation or abs(given.mean - known.mean) > FAR * known.deviation:
        return True
    if min(given.count, known.count) >= _MANY and not known.negative and given.negative > _SHARE * given.count:
        return True
    if not finished:
        return False
    many = given.count >= _MANY and not given.negative and known.negative > _SHARE * known.count
    return many or known.deviation > FAR * given.deviation


def _moments(array: NDArray[Any]) -> list[Moments]:
    """Of the whole input, and then of each channel where it has such."""
    channels = [
        Moments(
            part.size,
            float(part.mean(dtype=np.float64)),
            float(part.var(dtype=np.float64)) * part.size,
            float(part.min()),
            float(part.max()),
            int((part < 0).sum()),
        )
        for part in _channels(array)
    ]
    return [reduce(Moments.joined, channels), *(channels if len(channels) > 1 else [])]


def _channels(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The channels of images, (N, C, H, W), or (N, H, W, C) if there are so few; any other array is all one."""
    axis = 1 if array.ndim == 4 and array.shape[1] <= _CHANNELS else 3
    if array.ndim != 4 or array.shape[axis] > _CHANNELS:
        return [array]
    return list(np.moveaxis(array, axis, 0))


def _is_code(array: NDArray[Any]) -> bool:
    """Whether an input takes only a few values."""
    values = array.reshape(-1)
    return len(np.unique(values[:: max(1, values.size // _LOOKED_AT)])) <= _FEW
