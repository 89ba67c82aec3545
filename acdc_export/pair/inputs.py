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

    Raises:
        UsageError: they have others.
    """
    names = ", ".join(spec.name for spec in specs)
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
            if array.shape != spec.at(len(labels)) or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                wanted = ", ".join(str(dim) for dim in spec.shape)
                raise UsageError(
                    f"{data.spec} gives {spec.name} as {array.dtype} {array.shape}; "
                    f"the network takes {spec.dtype} ({wanted}).",
                    "Prepare the data as for training: same layout, size and type.",
                )
            inputs[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
        yield inputs, labels
