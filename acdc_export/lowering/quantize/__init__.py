"""From an FP32 graph to INT8.

`fold` folds batch norms and equalizes layers. `calibrate` records, on samples, the range and mean of every activation.
A scheme then writes INT8 in the form that a kind of runtime fuses. `dequantized` says what such a graph means.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..audit import load
from ..passes import fold_batchnorm
from . import calibration, dequantized, equalize, worthwhile
from .calibration import Calibration, Range, Watched, calibrate
from .layers import find

__all__ = [
    "Calibrated",
    "Calibration",
    "Quantization",
    "Range",
    "Watched",
    "calibrate",
    "dequantized",
    "faster_in_fp32",
    "fold",
    "instrument",
    "layer_names",
]


@dataclass(frozen=True)
class Calibrated:
    """What `fold` wrote, and what calibration measured on it: the same for all schemes."""

    folded: Path
    calibration: Calibration


@dataclass(frozen=True)
class Quantization:
    """How a graph is to be quantized."""

    calibrated: Calibrated
    scheme: str  # a module of `schemes`
    keep: tuple[str, ...] = ()  # layers that stay in FP32, by their weights' names
    weight_bits: int = 8  # 7 where a processor adds pairs of products in 16 bits: none of those then saturates

    def run(self, model: ir.Model) -> None:
        """Quantize a model in place. It has to come from what `fold` wrote."""
        _scheme(self.scheme).run(model, self.calibrated.calibration, self.keep, self.weight_bits)


def fold(source: Path, destination: Path) -> None:
    """Write the canonical graph `source` as it is calibrated: batch norms folded, layers equalized.

    It computes what it did before. The names of its activations are those of every graph lowered from it.
    """
    model = load(source)
    _read_constants_directly(model)
    fold_batchnorm.run(model, batch_size=1)
    equalize.run(model)
    model.graph.sort()
    ir.save(model, destination)


def _read_constants_directly(model: ir.Model) -> None:
    """Let operators read constants that Identity hands on: TorchScript's exporter shares equal biases so."""
    for node in list(model.graph):
        if node.op_type != "Identity" or node.outputs[0].is_graph_output():
            continue
        value = node.inputs[0]
        if value is not None and value.const_value is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)


def instrument(
    source: Path, destination: Path, keep: Collection[str] = (), schemes: Collection[str] = ()
) -> dict[str, Watched]:
    """Write the graph `source` with every activation as an additional output that `schemes` quantize.

    Those that go into layers are always among them, but for layers in `keep` (by their weights' names), which stay in
    FP32. Returns the activations by name.
    """
    choices = (getattr(_scheme(name), "watched", None) for name in schemes)
    return calibration.instrument(source, destination, keep, [choose for choose in choices if choose is not None])


def faster_in_fp32(calibrated: Calibrated, least_macs: float, keep: Collection[str]) -> tuple[str, ...]:
    """The layers that INT8 makes slower, by their weights' names, where `keep` stay in FP32 anyway.

    A layer pays from `least_macs` MACs for each value that is converted on.
    """
    return tuple(worthwhile.faster_in_fp32(load(calibrated.folded), least_macs, keep)) if least_macs else ()


def layer_names(path: Path) -> list[str]:
    """The layers of a graph that can be quantized, by their weights' names."""
    return [layer.name for layer in find(load(path))]


def _scheme(name: str) -> Any:
    return import_module(f".schemes.{name}", __package__)
