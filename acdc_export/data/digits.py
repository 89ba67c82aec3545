"""scikit-learn's 1,797 handwritten digits, 8x8 and grey. Networks train on even indices and are judged by odd ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..extras import extra

_MEAN, _DEVIATION = 4.884, 6.017  # of the 16 grey levels, over all images


def _part(first: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return every second image from the index `first`, and the labels, int64 (N,).

    Images are float32 (N, 1, 8, 8) of mean 0 and deviation 1.
    """
    with extra("train"):
        from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    x = ((images.reshape(-1, 1, 8, 8) - _MEAN) / _DEVIATION).astype(np.float32)
    return np.ascontiguousarray(x[first::2]), labels[first::2].astype(np.int64)


CLASSES = tuple("0123456789")

PARTS: Mapping[str, Callable[[], tuple[NDArray[Any], NDArray[Any]]]] = {
    "train": lambda: _part(0),
    "test": lambda: _part(1),
}
