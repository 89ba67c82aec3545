"""Data in the form that a network takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Data
from ..errors import UsageError
from .record import TensorSpec


def named(data: Data, specs: Sequence[TensorSpec], size: int) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """The data as inputs by name and labels, in the shapes and dtypes of `specs`, up to `size` rows at a time.

    For a network that runs on one batch size only, a rest of the data that fills no batch is left out: its rows depend
    on each other, so it can't be filled up.

    Raises:
        UsageError: they have others.
    """
    names = ", ".join(spec.name for spec in specs)
    first = specs[0].shape[0]
    batch_size = first if isinstance(first, int) else 1
    for given, labels in data.batches(size):
        if not isinstance(given, dict):
            if len(specs) != 1:
                raise UsageError(
                    f"{data.spec} gives one array; the network takes {names}.", "Give an array for each by name."
                )
            given = {specs[0].name: given}
        inputs = {}
        for spec in specs:
            array = given.get(spec.name)
            if array is None:
                raise UsageError(
                    f"{data.spec} gives {', '.join(given)}; the network takes {names}.",
                    "Name the arrays as the network's inputs are named.",
                )
            if array.shape[1:] != spec.shape[1:] or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                wanted = ", ".join(str(dim) for dim in spec.shape)
                raise UsageError(
                    f"{data.spec} gives {spec.name} as {array.dtype} {array.shape}; "
                    f"the network takes {spec.dtype} ({wanted}).",
                    "Prepare the data as for training: same layout, size and type.",
                )
            inputs[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
        rows = len(labels) - len(labels) % batch_size
        if rows:
            yield {name: array[:rows] for name, array in inputs.items()}, labels[:rows]
