"""The INT8 form that TensorRT takes: QuantizeLinear and DequantizeLinear around FP32 operators, symmetric throughout.

    x -> QuantizeLinear -> DequantizeLinear -> Conv (weight: int8 -> DequantizeLinear; bias: float32) -> as before

Its parser takes no zero point but 0, and no integer bias: it refuses what onnxruntime.quantization writes by
default. A weight has one scale for each output channel. It is symmetric as well, so that a zero stays zero.

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
    """Rewrite all layers of a model in place, except those whose weights are named in `keep`.

    Raises:
        GraphError: an activation was not calibrated.
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
    """Return a scale for each output channel, (channels,); 1 for a channel that is zero throughout.

    So has one of values so small that FP32 has no scale for them: they become zero.
    """
    scales = np.abs(layer.matrix()).max(axis=1) / levels
    return np.where(scales >= np.finfo(np.float32).tiny, scales, 1).astype(np.float32)


def _activation(model: ir.Model, value: ir.Value, limits: Range) -> ir.Value:
    """Quantize and dequantize an activation, once for all layers that read it. Returns the dequantized value."""
    name = value.name or "x"
    scale = np.float32(max(-limits.low, limits.high) / _STEPS)
    inputs = [add_constant(model, f"{name}_scale", scale), add_constant(model, f"{name}_zero_point", np.int8(0))]
    quantize = ir.node("QuantizeLinear", [value, *inputs])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *inputs])
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
    quantize.outputs[0].dtype, dequantize.outputs[0].dtype = ir.DataType.INT8, ir.DataType.FLOAT
    quantize.outputs[0].shape = dequantize.outputs[0].shape = value.shape
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [quantize, dequantize])
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _rewrite(model: ir.Model, layer: Layer, x: ir.Value, mean: NDArray[np.float64], levels: int) -> None:
    node, name, weight, scales = layer.node, layer.name, layer.array, scales_of(layer, levels)
    along = scales.reshape([-1 if axis == layer.outputs else 1 for axis in range(weight.ndim)])
    integers = np.clip(np.round(weight / along), -levels, levels).astype(np.int8)
    inputs = [
        add_constant(model, f"{name}_quantized", integers),
        add_constant(model, f"{name}_scales", scales),
        add_constant(model, f"{name}_zero_points", np.zeros(len(scales), dtype=np.int8)),
    ]
    dequantize = ir.node("DequantizeLinear", inputs, {"axis": layer.outputs})
    dequantize.outputs[0].name, dequantize.outputs[0].dtype = f"{name}_dequantized", ir.DataType.FLOAT
    dequantize.outputs[0].shape = ir.Shape(weight.shape)
    model.graph.insert_before(node, dequantize)
    at = list(node.inputs).index(layer.weight)
    node.replace_input_with(at, dequantize.outputs[0])
    node.replace_input_with(1 - at, x)
    lost = weight - integers * along
    if layer.node.op_type == "Gemm" and layer.outputs == 0:
        lost = lost.T  # input channels first, as `corrected` takes it
    bias = corrected(layer, lost, mean)
    if node.op_type == "MatMul":
        return
    value = add_constant(model, f"{name}_bias_corrected", bias.astype(np.float32))
    if len(node.inputs) > 2:
        node.replace_input_with(2, value)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, value)
