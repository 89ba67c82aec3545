"""What quantization has to know of the activations: their ranges and means, on samples of the training split.

One record serves every scheme: it belongs to the network, not to a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import CalibrationError, GraphError
from ..audit import load
from .layers import find

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Method = Literal["min-max", "percentile", "mse"]

_BINS = 2048
_SOME = 2**15  # values of an activation that are kept of each batch, chosen at random
_PERCENTILE = 99.99  # of the values, between the two ends
_STEPS = 64  # ranges that are tried for the least error
_LEVELS = 255


@dataclass(frozen=True)
class Range:
    """The values of an activation that are told apart; others become the nearest of these. Zero is among them."""

    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Of each activation that goes into a layer, by its name in the graph."""

    method: Method
    samples: int
    ranges: dict[str, Range]
    means: dict[str, NDArray[np.float64]]  # by channel, (channels,)

    def range_of(self, activation: str, layer: str) -> Range:
        """The range of an activation that goes into a layer. Raises `GraphError` where it was not calibrated."""
        if activation not in self.ranges:
            raise GraphError(
                f"The activation {activation}, which goes into {layer}, was not calibrated.",
                "A pass before this one made it; leave that pass out, and please report this graph.",
            )
        return self.ranges[activation]


def instrument(source: Path, destination: Path) -> dict[str, int]:
    """Write the graph `source` with every activation that goes into a layer as an output more.

    Returns these by name, each with the axis of its channels.
    """
    model = load(source)
    watched: dict[str, int] = {}
    for layer in find(model):
        value = layer.activation
        if value.name and value.name not in watched:
            watched[value.name] = 1 if layer.node.op_type == "Conv" else -1
            if not (value.is_graph_input() or value.is_graph_output()):
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
    ir.save(model, destination)
    return watched


def calibrate(run: Run, batches: Iterable[Arrays], watched: Mapping[str, int], method: Method = "mse") -> Calibration:
    """Ranges and means of the `watched` values, which `run` gives for a batch of inputs.

    The ends of a range and the means are of all values; what lies between the ends is told by some of them.

    Raises:
        CalibrationError: no samples, values that are not finite, or an activation that is always the same.
    """
    random = np.random.default_rng(0)
    seen = {name: _Seen() for name in watched}
    samples = 0
    for inputs in batches:
        samples += len(next(iter(inputs.values())))
        found = {**inputs, **run(inputs)}
        for name, axis in watched.items():
            seen[name].add(name, found[name], axis, random)
    if not samples:
        raise CalibrationError("There are no samples to calibrate with.", "Give some of the training split.")
    for name, one in seen.items():
        if one.least == one.greatest:
            raise CalibrationError(
                f"The activation {name} is {one.least:g} for all samples.",
                "Calibrate with more, and other, samples; a layer that gives the same for all of them is dead.",
            )
    narrowed = {"min-max": lambda counts, ends: ends, "percentile": _percentile, "mse": _least_error}[method]
    return Calibration(
        method,
        samples,
        ranges={name: narrowed(one.counts(), one.ends) for name, one in seen.items()},
        means={name: one.total / one.count for name, one in seen.items()},
    )


class _Seen:
    """What was seen of an activation."""

    def __init__(self) -> None:
        self.least, self.greatest = np.inf, -np.inf
        self.total: NDArray[np.float64] = np.zeros(1)  # by channel,
        self.count = 0  # of so many values each
        self._some: list[NDArray[np.float32]] = []

    def add(self, name: str, array: NDArray[np.float32], axis: int, random: np.random.Generator) -> None:
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise CalibrationError(
                f"The activation {name} is not finite.", "Are the calibration samples prepared as for training?"
            )
        self.least, self.greatest = min(self.least, low), max(self.greatest, high)
        others = tuple(at for at in range(array.ndim) if at != axis % array.ndim)
        self.total = self.total + array.sum(axis=others, dtype=np.float64)
        self.count += array.size // array.shape[axis]
        values = array.ravel()
        self._some.append(values if values.size <= _SOME else values[random.integers(0, values.size, _SOME)])

    @property
    def ends(self) -> Range:
        """The least and the greatest value, and zero."""
        return Range(min(0.0, self.least), max(0.0, self.greatest))

    def counts(self) -> NDArray[np.int64]:
        """How many of some values are in each bin between the ends."""
        return np.histogram(np.concatenate(self._some), _BINS, (self.ends.low, self.ends.high))[0]


def _percentile(counts: NDArray[np.int64], ends: Range) -> Range:
    """Without the outermost values at both ends."""
    edges = np.linspace(ends.low, ends.high, _BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    outside = (1 - _PERCENTILE / 100) / 2
    low = edges[np.searchsorted(share, outside, side="right")] if ends.low < 0 else 0.0
    high = edges[min(int(np.searchsorted(share, 1 - outside)) + 1, _BINS)]
    return Range(min(0.0, float(low)), max(0.0, float(high)) or ends.high)


def _least_error(counts: NDArray[np.int64], ends: Range) -> Range:
    """The range, both ends drawn in alike, whose 256 levels leave the least mean squared error."""
    width = (ends.high - ends.low) / _BINS
    centres = ends.low + width * (np.arange(_BINS) + 0.5)
    best, least = ends, np.inf
    for share in np.linspace(1.0, 0.3, _STEPS):
        low, high = share * ends.low, share * ends.high
        step = (high - low) / _LEVELS
        error = float(counts @ (np.clip(np.round(centres / step) * step, low, high) - centres) ** 2)
        if error < least:
            best, least = Range(low, high), error
    return best
