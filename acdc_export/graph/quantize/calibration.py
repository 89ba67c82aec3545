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

from ...errors import CalibrationError
from ..audit import load
from .layers import find

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Method = Literal["min-max", "percentile", "mse"]

_BINS = 2048
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


def calibrate(
    run: Run, batches: Callable[[], Iterable[Arrays]], watched: Mapping[str, int], method: Method = "mse"
) -> Calibration:
    """Ranges and means of the `watched` values, which `run` gives for a batch of inputs.

    The batches are gone through twice: for the ends of each range, and for what lies between them.

    Raises:
        CalibrationError: no samples, values that are not finite, or an activation that is always the same.
    """
    ends, sums, samples = _ends(run, batches(), watched)
    if not samples:
        raise CalibrationError("There are no samples to calibrate with.", "Give some of the training split.")
    means = {name: total / count for name, (total, count) in sums.items()}
    if method == "min-max":
        ranges = ends
    else:
        narrowed = {"percentile": _percentile, "mse": _least_error}[method]
        counts = _counts(run, batches(), watched, ends)
        ranges = {name: narrowed(counts[name], ends[name]) for name in watched}
    return Calibration(method, samples, ranges, means)


def _ends(
    run: Run, batches: Iterable[Arrays], watched: Mapping[str, int]
) -> tuple[dict[str, Range], dict[str, tuple[NDArray[np.float64], int]], int]:
    """The least and the greatest value of each, with zero; sums by channel, and of how many values; the samples."""
    ends: dict[str, Range] = {}
    sums: dict[str, tuple[NDArray[np.float64], int]] = {}
    constant: dict[str, float | None] = {}
    samples = 0
    for inputs in batches:
        samples += len(next(iter(inputs.values())))
        found = {**inputs, **run(inputs)}
        for name, axis in watched.items():
            array = found[name]
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise CalibrationError(
                    f"The activation {name} is not finite.", "Are the calibration samples prepared as for training?"
                )
            constant[name] = low if low == high and constant.get(name, low) == low else None
            before = ends.get(name, Range(0.0, 0.0))
            ends[name] = Range(min(low, before.low), max(high, before.high))
            other = tuple(at for at in range(array.ndim) if at != axis % array.ndim)
            total, count = sums.get(name, (np.zeros(array.shape[axis]), 0))
            sums[name] = (total + array.sum(axis=other, dtype=np.float64), count + array.size // array.shape[axis])
    stuck = [name for name, value in constant.items() if value is not None]
    if stuck:
        raise CalibrationError(
            f"The activation {stuck[0]} is {constant[stuck[0]]:g} for all samples.",
            "Calibrate with more, and other, samples; a layer that gives the same for all of them is dead.",
        )
    return ends, sums, samples


def _counts(
    run: Run, batches: Iterable[Arrays], watched: Mapping[str, int], ends: Mapping[str, Range]
) -> dict[str, NDArray[np.int64]]:
    """How many values are in each of 2048 bins of equal width between the ends."""
    counts = {name: np.zeros(_BINS, dtype=np.int64) for name in watched}
    for inputs in batches:
        found = {**inputs, **run(inputs)}
        for name in watched:
            low, high = ends[name].low, ends[name].high
            places = ((found[name].ravel() - np.float32(low)) * np.float32(_BINS / (high - low))).astype(np.int32)
            counts[name] += np.bincount(np.clip(places, 0, _BINS - 1, out=places), minlength=_BINS)
    return counts


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
