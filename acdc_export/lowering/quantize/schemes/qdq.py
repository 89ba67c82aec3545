"""Integers as TensorRT takes them: QuantizeLinear and DequantizeLinear around floats, symmetric throughout.

    x -> QuantizeLinear -> DequantizeLinear -> Conv (weight: int8 -> DequantizeLinear; bias: float32) -> as before

Its parser takes no zero point but 0, and no bias in integers: it refuses what onnxruntime.quantization writes by
default. A weight has a scale for each output channel, and is symmetric as well, so that a zero stays zero.

No TensorRT has run this form yet.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..bias import corrected
from ..calibration import Calibration, Range
from ..layers import Layer, add_constant, find

_STEPS = 127  # to either side of zero


def run(model: ir.Model, calibration: Calibration, keep: Collection[str] = (), weight_bits: int = 8) -> None:
    """Rewrite a model in place, all layers but those whose weights are named in `keep`.

    Raises:
        GraphError: an activation that was not calibrated.
    """
    quantized: dict[str, ir.Value] = {}
    for layer in list(find(model)):
        if layer.name in keep:
            continue
        name = layer.activation.name or ""
        if name not in quantized:
            quantized[name] = _activation(model, layer.activation, calibration.range_of(name, layer.name))
        _rewrite(model, layer, quantized[name], calibration.means[name], 2 ** (weight_bits - 1) - 1)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def scales_of(layer: Layer, levels: int) -> NDArray[np.float32]:
    """A scale for each output channel; 1 for a channel that is zero throughout."""
    largest = np.abs(layer.matrix()).max(axis=1)
    return np.where(largest > 0, largest / levels, 1).astype(np.float32)


def _activation(model: ir.Model, value: ir.Value, wanted: Range) -> ir.Value:
    """An activation, to integers and back: once, however many layers read it."""
    name = value.name or "x"
    scale = np.float32(max(-wanted.low, wanted.high) / _STEPS)
    inputs = [add_constant(model, f"{name}_scale", scale), add_constant(model, f"{name}_zero_point", np.int8(0))]
    there = ir.node("QuantizeLinear", [value, *inputs])
    back = ir.node("DequantizeLinear", [there.outputs[0], *inputs])
    there.outputs[0].name, back.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
    there.outputs[0].dtype, back.outputs[0].dtype = ir.DataType.INT8, ir.DataType.FLOAT
    there.outputs[0].shape = back.outputs[0].shape = value.shape
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [there, back])
    else:
        model.graph.insert_after(producer, [there, back])
    return back.outputs[0]


def _rewrite(model: ir.Model, layer: Layer, x: ir.Value, mean: NDArray[np.float64], levels: int) -> None:
    node, name, weight, scales = layer.node, layer.name, layer.array, scales_of(layer, levels)
    along = scales.reshape([-1 if axis == layer.outputs else 1 for axis in range(weight.ndim)])
    integers = np.clip(np.round(weight / along), -levels, levels).astype(np.int8)
    inputs = [
        add_constant(model, f"{name}_quantized", integers),
        add_constant(model, f"{name}_scales", scales),
        add_constant(model, f"{name}_zero_points", np.zeros(len(scales), dtype=np.int8)),
    ]
    back = ir.node("DequantizeLinear", inputs, {"axis": layer.outputs})
    back.outputs[0].name, back.outputs[0].dtype = f"{name}_dequantized", ir.DataType.FLOAT
    back.outputs[0].shape = ir.Shape(weight.shape)
    model.graph.insert_before(node, back)
    at = list(node.inputs).index(layer.weight)
    node.replace_input_with(at, back.outputs[0])
    node.replace_input_with(1 - at, x)
    lost = weight - integers * along
    if layer.node.op_type == "Gemm" and layer.outputs == 0:
        lost = lost.T  # as the product takes it
    bias = corrected(layer, lost, mean)
    if node.op_type == "MatMul":
        return
    value = add_constant(model, f"{name}_bias_corrected", bias.astype(np.float32))
    if len(node.inputs) > 2:
        node.replace_input_with(2, value)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, value)
