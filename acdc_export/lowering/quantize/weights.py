"""INT8 weights of FP32 operators: symmetric, a scale for each output channel, so that a zero stays zero.

    int8 -> DequantizeLinear -> Conv, Gemm or MatMul

The operator's bias stays in FP32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bias import corrected
from .layers import Layer, add_constant


def scales_of(layer: Layer, levels: int) -> NDArray[np.float32]:
    """Return a scale for each output channel, (channels,); 1 for a channel that is zero throughout.

    So has one of values so small that FP32 has no scale for them: they become zero.
    """
    scales = np.abs(layer.matrix()).max(axis=1) / levels
    return np.where(scales >= np.finfo(np.float32).tiny, scales, 1).astype(np.float32)


def quantize(
    model: ir.Model, layer: Layer, scales: NDArray[np.float32], mean: NDArray[np.float64], levels: int
) -> None:
    """Let a layer read its weight from int8. Its bias gives back what that takes from the mean of its outputs.

    The bias stays in FP32. A MatMul has none, and is not corrected.

    Args:
        scales: one for each output channel, (channels,).
        mean: of the layer's activation, (input channels,).
        levels: to either side of zero.
    """
    node, name, weight = layer.node, layer.name, layer.array
    along = scales.reshape([-1 if axis == layer.outputs else 1 for axis in range(weight.ndim)])
    integers = np.clip(np.round(weight / along), -levels, levels).astype(np.int8)
    stored = add_constant(model, f"{name}_quantized", integers)
    inputs = [
        stored,
        add_constant(model, f"{name}_scales", scales),
        add_constant(model, f"{name}_zero_points", np.zeros(len(scales), dtype=np.int8)),
    ]
    dequantize = ir.node("DequantizeLinear", inputs, {"axis": layer.outputs})
    output = dequantize.outputs[0]
    output.name = str(stored.name).replace(f"{name}_quantized", f"{name}_dequantized")  # layers may share a weight
    output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape(weight.shape)
    model.graph.insert_before(node, dequantize)
    node.replace_input_with(list(node.inputs).index(layer.weight), output)
    if node.op_type == "MatMul":
        return
    lost = weight - integers * along
    if node.op_type == "Gemm" and layer.outputs == 0:
        lost = lost.T  # input channels first, as `corrected` takes it
    bias = corrected(layer, lost, mean)
    value = add_constant(model, f"{name}_bias_corrected", bias.astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
