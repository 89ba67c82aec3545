"""From a float graph to one of integers.

`prepare` folds and equalizes; `calibrate` records, on samples, what every activation is like; a scheme then writes
the integers in the form that a kind of runtime fuses; and `exact` says what such a graph means.
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
    "faster_in_float",
    "instrument",
    "layer_names",
    "prepare",
]

SCHEMES: dict[str, Callable[[ir.Model, Calibration, Collection[str], int], None]] = {
    "convinteger": convinteger.run,
    "qdq": qdq.run,
}


@dataclass(frozen=True)
class Calibrated:
    """What `prepare` wrote, and what was found out there: the same for all schemes."""

    prepared: Path
    calibration: Calibration


@dataclass(frozen=True)
class Quantization:
    """How a graph is to be quantized."""

    calibrated: Calibrated
    scheme: str  # one of SCHEMES
    keep: tuple[str, ...] = ()  # layers left in float, by their weights' names
    weight_bits: int = 8  # 7 where a processor adds pairs of products in 16 bits: none of those then saturates

    def run(self, model: ir.Model) -> None:
        """Quantize a model, lowered from what `prepare` wrote, in place."""
        SCHEMES[self.scheme](model, self.calibrated.calibration, self.keep, self.weight_bits)


def prepare(source: Path, destination: Path) -> None:
    """Write the canonical graph `source` as it is calibrated: batch norms folded, layers equalized.

    It computes what it did before, and the names of its activations are those of every graph lowered from it.
    """
    model = load(source)
    fold_batchnorm.run(model, batch_size=1)
    equalize.run(model)
    model.graph.sort()
    ir.save(model, destination)


def faster_in_float(calibrated: Calibrated, scheme: str, keep: Collection[str], *, vnni: bool) -> tuple[str, ...]:
    """The layers that integers of a scheme make slower, by their weights' names, where `keep` stay in float anyway."""
    if scheme != "convinteger":
        return ()  # what a GPU gains by them was not measured
    products = worthwhile.PRODUCTS_VNNI if vnni else worthwhile.PRODUCTS
    return tuple(worthwhile.faster_in_float(load(calibrated.prepared), products, keep))


def layer_names(path: Path) -> list[str]:
    """The layers of a graph that can be quantized, by their weights' names."""
    return [layer.name for layer in find(load(path))]
