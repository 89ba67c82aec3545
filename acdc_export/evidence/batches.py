"""Run any number of samples through an engine that takes batches of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Arrays, Engine


def run(engine: Engine, inputs: Arrays, batch_size: int) -> dict[str, NDArray[Any]]:
    """Return the outputs for all rows of `inputs`, by name.

    The last batch is filled up with repeats of its last row, whose outputs are dropped. Raises what `Engine.run` does.
    """
    rows = len(next(iter(inputs.values())))
    outputs = []
    for start in range(0, rows, batch_size):
        batch = {name: pad(array[start : start + batch_size], batch_size) for name, array in inputs.items()}
        count = min(batch_size, rows - start)
        outputs.append({name: array[:count] for name, array in engine.run(batch).items()})
    return {name: np.concatenate([batch[name] for batch in outputs]) for name in outputs[0]}


def pad(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """Repeat the last row of `array` until it has `rows` rows."""
    missing = rows - len(array)
    return np.ascontiguousarray(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array)
