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

from .. import activations, weights
from ..calibration import Calibration, Range
from ..layers import add_constant, find

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
        layer.node.replace_input_with(list(layer.node.inputs).index(layer.activation), quantized[name])
        levels = 2 ** (weight_bits - 1) - 1
        weights.quantize(model, layer, weights.scales_of(layer, levels), calibration.means[name], levels)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _activation(model: ir.Model, value: ir.Value, limits: Range) -> ir.Value:
    """Quantize and dequantize an activation, once for all layers that read it. Returns the dequantized value."""
    name = value.name or "x"
    scale = np.float32(max(-limits.low, limits.high) / _STEPS)
    inputs = [add_constant(model, f"{name}_scale", scale), add_constant(model, f"{name}_zero_point", np.int8(0))]
    return activations.quantize(model, value, *inputs)
