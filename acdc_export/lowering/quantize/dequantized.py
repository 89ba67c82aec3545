"""The dequantized reference: a quantized graph with its integer operators in FP32, for engines to be compared with.

An engine's own integer kernels are no reference. Without VNNI, ONNX Runtime's MatMulInteger adds pairs of products in
16 bits, which saturates where weights use all 8 bits. FP32 holds the same integers, and sums of them to one part in
2^24. Activations become FP32 by Cast and Sub: a convolution behind DequantizeLinear would be made an integer one again.
For the same reason QuantizeLinear and DequantizeLinear become the division, rounding and limits that they stand for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..audit import load
from .layers import add_constant, constant

_LEVELS = {ir.DataType.INT8: (-128.0, 127.0), ir.DataType.UINT8: (0.0, 255.0)}
_FP32 = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def write(source: Path, destination: Path) -> None:
    """Write the quantized graph `source` with its integer operators in FP32."""
    model = load(source)
    for node in list(model.graph):
        if node.op_type in _FP32:
            _rewrite(model, node)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            _dequantize(model, node)
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Cast" else None
        if value is None or node.attributes["to"].as_int() != ir.DataType.FLOAT:
            continue
        if value.dtype == ir.DataType.FLOAT:  # the cast from an integer output, which is FP32 now
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    ir.save(model, destination)


def _dequantize(model: ir.Model, node: ir.Node) -> None:
    """Replace DequantizeLinear: a weight becomes FP32, an activation is rounded to the values that INT8 has."""
    stored, scale, zero = node.inputs
    assert stored is not None
    assert scale is not None
    assert zero is not None
    old = node.outputs[0]
    if stored.const_value is not None:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        integers, scales = constant(stored).astype(np.float32), constant(scale)
        along = scales.reshape([-1 if at == axis else 1 for at in range(integers.ndim)]) if scales.ndim else scales
        new = add_constant(model, f"{old.name}_float", integers * along)
    else:
        quantize = stored.producer()
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return
        ends = (np.float32(end - int(constant(zero))) for end in _LEVELS[zero.dtype])  # type: ignore[index]
        low, high = (add_constant(model, f"{old.name}_limit", end) for end in ends)
        divided = ir.node("Div", [quantize.inputs[0], scale])
        rounded = ir.node("Round", [divided.outputs[0]])
        clipped = ir.node("Clip", [rounded.outputs[0], low, high])
        scaled = ir.node("Mul", [clipped.outputs[0], scale])
        model.graph.insert_before(node, [divided, rounded, clipped, scaled])
        new = scaled.outputs[0]
        new.dtype, new.shape = ir.DataType.FLOAT, old.shape
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(node, safe=True)


def _rewrite(model: ir.Model, node: ir.Node) -> None:
    x, weight, zero, _ = node.inputs
    assert x is not None
    assert weight is not None
    assert zero is not None
    cast = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
    offset = add_constant(model, f"{zero.name}_float", constant(zero).astype(np.float32))
    shifted = ir.node("Sub", [cast.outputs[0], offset])
    weights = add_constant(model, f"{weight.name}_float", constant(weight).astype(np.float32))
    operator = ir.Node("", _FP32[node.op_type], [shifted.outputs[0], weights], list(node.attributes.values()))
    model.graph.insert_before(node, [cast, shifted, operator])
    old, new = node.outputs[0], operator.outputs[0]
    for value in (cast.outputs[0], shifted.outputs[0], new):
        value.dtype = ir.DataType.FLOAT
    new.shape = old.shape
    for user, at in old.uses():
        if user.op_type == "Add":  # the Add of the bias, which becomes FP32 as well
            bias = user.inputs[1 - at]
            assert bias is not None
            user.replace_input_with(
                1 - at, add_constant(model, f"{bias.name}_float", constant(bias).astype(np.float32))
            )
            user.outputs[0].dtype = ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(node, safe=True)
