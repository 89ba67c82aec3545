"""Calibration: the range and mean of activations, on samples of the training split.

One calibration serves every scheme: it belongs to the network, not to a target.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
Choose = Callable[[ir.Model, Collection[str]], Iterable[ir.Value]]
"""Chooses activations of a graph, of which some layers stay in FP32."""

Method = Literal["min-max", "percentile", "mse"]

_BINS = 2048
_KEPT = 2**15  # values of an activation that are kept of each batch, chosen at random
_PERCENTILE = 99.99  # percent of the values that lie between the two ends
_TRIED = 64  # ranges that are tried for the least error
_LEVELS = 255


@dataclass(frozen=True)
class Range:
    """The range of an activation that INT8 represents, zero included. Values outside become the nearest end."""

    low: float
    high: float


DEAD = Range(0.0, 1.0)
"""The range of an activation that is 0 for all samples, such as that of a ReLU that never fires.

Any range represents 0 exactly. One that is far wider than those of other activations would make the steps in which a
bias is added coarse.
"""


@dataclass(frozen=True)
class Watched:
    """An activation that calibration looks at."""

    axis: int  # of its channels
    layers: tuple[str, ...] = ()  # that it goes into, by their weights' names


@dataclass(frozen=True)
class Calibration:
    """Range and mean of each activation that was watched, by its name in the graph."""

    method: Method
    samples: int
    ranges: dict[str, Range]
    means: dict[str, NDArray[np.float64]]  # by channel, (channels,)
    unvaried: dict[str, float] = field(default_factory=dict)  # layers whose activation has only this value

    def range_of(self, activation: str, reader: str) -> Range:
        """Return the range of an activation that goes into `reader`. Raises `GraphError` if it was not calibrated."""
        if activation not in self.ranges:
            raise GraphError(
                f"The activation {activation}, which goes into {reader}, was not calibrated.",
                "A pass before this one made it; leave that pass out, and please report this graph.",
            )
        return self.ranges[activation]

    def mean_of(self, activation: str, layer: str) -> NDArray[np.float64]:
        """Return the mean of an activation that goes into `layer`, (channels,); raises as `range_of` does."""
        self.range_of(activation, layer)
        return self.means[activation]


def instrument(
    source: Path, destination: Path, keep: Collection[str] = (), beside: Iterable[Choose] = ()
) -> dict[str, Watched]:
    """Write the graph `source` with every activation that goes into a layer as an additional output.

    Layers in `keep` (by their weights' names) stay in FP32: they need no range. `beside` choose further activations to
    watch. Returns the activations by name.
    """
    model = load(source)
    watched: dict[str, Watched] = {}
    chosen: dict[str, ir.Value] = {}
    for layer in find(model):
        value = layer.activation
        if not value.name or layer.name in keep:
            continue
        chosen[value.name] = value
        before = watched.get(value.name, Watched(1 if layer.node.op_type == "Conv" else -1))
        watched[value.name] = replace(before, layers=(*before.layers, layer.name))
    for choose in beside:
        for value in choose(model, keep):
            assert value.name  # a file's values have names
            chosen[value.name] = value
            watched.setdefault(value.name, Watched(-1))
    for value in chosen.values():
        if not (value.is_graph_input() or value.is_graph_output()):
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)
    ir.save(model, destination)
    return watched


def calibrate(
    run: Run, batches: Iterable[Arrays], watched: Mapping[str, Watched], method: Method = "mse"
) -> Calibration:
    """Return ranges and means of the `watched` values, which `run` gives for a batch of inputs.

    Ends of ranges and means come from all values. The distribution between the ends comes from a random sample of them.
    An activation that has a single value c throughout has the range from 0 to c, and `DEAD` where c is 0.

    Raises:
        CalibrationError: there are no samples, or values are not finite.
    """
    # What goes into layers is sampled alike, whatever is watched beside it.
    random, random_beside = np.random.default_rng(0), np.random.default_rng(1)
    statistics = {name: _Statistics() for name in watched}
    samples = 0
    for inputs in batches:
        samples += len(next(iter(inputs.values())))
        activations = {**inputs, **run(inputs)}
        for name, activation in watched.items():
            statistics[name].add(name, activations[name], activation, random if activation.layers else random_beside)
    if not samples:
        raise CalibrationError("There are no samples to calibrate with.", "Give some of the training split.")
    narrowed = {"min-max": lambda counts, ends: ends, "percentile": _percentile, "mse": _least_error}[method]
    return Calibration(
        method,
        samples,
        ranges={name: _range(activation, narrowed) for name, activation in statistics.items()},
        means={name: activation.total / activation.count for name, activation in statistics.items()},
        unvaried={
            layer: activation.least
            for name, activation in statistics.items()
            if activation.least == activation.greatest
            for layer in watched[name].layers
        },
    )


def _range(activation: _Statistics, narrowed: Callable[[NDArray[np.int64], Range], Range]) -> Range:
    ends = activation.ends
    if (ends.high - ends.low) / _LEVELS < np.finfo(np.float32).tiny:  # FP32 has no such scale
        return DEAD
    return ends if activation.least == activation.greatest else narrowed(activation.counts(), ends)


class _Statistics:
    """Statistics of one activation, gathered batch by batch."""

    def __init__(self) -> None:
        self.least, self.greatest = np.inf, -np.inf
        self.total: NDArray[np.float64] = np.zeros(1)  # sum of the values of each channel, (channels,)
        self.count = 0  # values of each channel
        self._kept: list[NDArray[np.float32]] = []

    def add(self, name: str, array: NDArray[np.float32], activation: Watched, random: np.random.Generator) -> None:
        axis, low, high = activation.axis, float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            kept = " ".join(f"--keep-fp32 {layer}" for layer in activation.layers)
            raise CalibrationError(
                f"The activation {name} is not finite.",
                f"Prepare the calibration samples as for training{f', or leave it in FP32: {kept}' if kept else ''}.",
            )
        self.least, self.greatest = min(self.least, low), max(self.greatest, high)
        others = tuple(at for at in range(array.ndim) if at != axis % array.ndim)
        self.total = self.total + array.sum(axis=others, dtype=np.float64)
        self.count += array.size // array.shape[axis]
        values = array.ravel()
        self._kept.append(values if values.size <= _KEPT else values[random.integers(0, values.size, _KEPT)])

    @property
    def ends(self) -> Range:
        """The range from the least to the greatest value, zero included."""
        return Range(min(0.0, self.least), max(0.0, self.greatest))

    def counts(self) -> NDArray[np.int64]:
        """Return how many of the kept values lie in each bin between the ends, (bins,)."""
        values: NDArray[Any] = np.concatenate(self._kept)
        low, high = self.ends.low, self.ends.high
        if high - low < _BINS * np.finfo(np.float32).tiny:  # in FP32 such bins have no width
            width = high - low
            values, low, high = values.astype(np.float64) / width, low / width, high / width
        return np.histogram(values, _BINS, (low, high))[0]


def _percentile(counts: NDArray[np.int64], ends: Range) -> Range:
    """Return the range without the outermost values at both ends."""
    edges = np.linspace(ends.low, ends.high, _BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    outside = (1 - _PERCENTILE / 100) / 2
    low = edges[np.searchsorted(share, outside, side="right")] if ends.low < 0 else 0.0
    high = edges[min(int(np.searchsorted(share, 1 - outside)) + 1, _BINS)]
    return Range(min(0.0, float(low)), max(0.0, float(high)) or ends.high)


def _least_error(counts: NDArray[np.int64], ends: Range) -> Range:
    """Return the range whose 256 levels leave the least mean squared error; both ends are drawn in alike."""
    width = (ends.high - ends.low) / _BINS
    centres = ends.low + width * (np.arange(_BINS) + 0.5)
    best, least = ends, np.inf
    for share in np.linspace(1.0, 0.3, _TRIED):
        low, high = share * ends.low, share * ends.high
        step = (high - low) / _LEVELS
        error = float(counts @ (np.clip(np.round(centres / step) * step, low, high) - centres) ** 2)
        if error < least:
            best, least = Range(low, high), error
    return best
