"""Running any number of samples through an engine that takes batches of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Arrays, Engine


def run(engine: Engine, inputs: Arrays, batch_size: int) -> dict[str, NDArray[Any]]:
    """Outputs for all rows of `inputs`. The last batch is filled up with repeats of its last row, which are dropped."""
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, batch_size):
        taken = {name: pad(array[start : start + batch_size], batch_size) for name, array in inputs.items()}
        wanted = min(batch_size, rows - start)
        parts.append({name: array[:wanted] for name, array in engine.run(taken).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pad(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """`array` with its last row repeated until there are `rows` of them."""
    missing = rows - len(array)
    return np.ascontiguousarray(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array)
