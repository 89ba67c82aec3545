"""INT8 activations between operators in FP32: QuantizeLinear, and DequantizeLinear for whatever reads them."""

from __future__ import annotations

import onnx_ir as ir


def quantize(model: ir.Model, value: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
    """Insert both operators behind what computes a value; `zero` tells the integers' type. Nothing reads them yet.

    Returns the dequantized value.
    """
    name = value.name or "x"
    quantized = ir.node("QuantizeLinear", [value, scale, zero])
    dequantized = ir.node("DequantizeLinear", [quantized.outputs[0], scale, zero])
    quantized.outputs[0].name, dequantized.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
    quantized.outputs[0].type, dequantized.outputs[0].dtype = zero.type, ir.DataType.FLOAT
    quantized.outputs[0].shape = dequantized.outputs[0].shape = value.shape
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [quantized, dequantized])
    else:
        model.graph.insert_after(producer, [quantized, dequantized])
    return dequantized.outputs[0]
