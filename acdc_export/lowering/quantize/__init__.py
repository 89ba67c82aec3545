"""Quantize an FP32 graph to INT8.

1. `fold` folds batch norms and equalizes layers.
2. `calibrate` records the range and mean of every activation on samples.
3. A scheme writes the INT8 graph in the form that a kind of runtime fuses.
4. `dequantized` writes the dequantized reference: what that graph computes, in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..audit import load
from ..passes import fold_batchnorm
from . import convinteger, dequantized, equalize, qdq, worthwhile
from .calibration import Calibration, Range, calibrate, instrument
from .layers import find

__all__ = [
    "SCHEMES",
    "Calibrated",
    "Calibration",
    "Quantization",
    "Range",
    "calibrate",
    "dequantized",
    "faster_in_fp32",
    "fold",
    "instrument",
    "layer_names",
]

SCHEMES: dict[str, Callable[[ir.Model, Calibration, Collection[str], int], None]] = {
    "convinteger": convinteger.run,
    "qdq": qdq.run,
}


@dataclass(frozen=True)
class Calibrated:
    """The graph that `fold` wrote, and its calibration. All schemes share it."""

    folded: Path
    calibration: Calibration


@dataclass(frozen=True)
class Quantization:
    """How a graph is to be quantized."""

    calibrated: Calibrated
    scheme: str  # one of SCHEMES
    keep: tuple[str, ...] = ()  # layers left in FP32, by their weights' names
    weight_bits: int = 8  # 7 where a processor adds pairs of products in 16 bits, so that no sum saturates

    def run(self, model: ir.Model) -> None:
        """Quantize a model in place. It was lowered from the graph that `fold` wrote."""
        SCHEMES[self.scheme](model, self.calibrated.calibration, self.keep, self.weight_bits)


def fold(source: Path, destination: Path) -> None:
    """Fold the batch norms of the canonical graph `source`, equalize its layers, and write it to `destination`.

    The graph computes what it did before. Every graph lowered from it has the same names of activations.
    """
    model = load(source)
    fold_batchnorm.run(model, batch_size=1)
    equalize.run(model)
    model.graph.sort()
    ir.save(model, destination)


def faster_in_fp32(calibrated: Calibrated, scheme: str, keep: Collection[str], *, vnni: bool) -> tuple[str, ...]:
    """Return the layers that a scheme's INT8 makes slower, by their weights' names.

    Layers in `keep` stay in FP32 anyway, and are not among them.
    """
    if scheme != "convinteger":
        return ()  # nobody has measured what a GPU gains by INT8
    macs = worthwhile.MACS_VNNI if vnni else worthwhile.MACS
    return tuple(worthwhile.faster_in_fp32(load(calibrated.folded), macs, keep))


def layer_names(path: Path) -> list[str]:
    """Return the layers of a graph that can be quantized, by their weights' names."""
    return [layer.name for layer in find(load(path))]
