"""Integer operators in floats: what a quantized graph means, for engines to be held against.

An engine's own integer kernels are no reference: without VNNI, ONNX Runtime's MatMulInteger adds pairs of products in
16 bits, which saturates where weights use all 8 bits. Floats hold the same integers, and sums of them to one part in
2^24. Activations become floats by Cast and Sub, since a convolution behind DequantizeLinear is made one of integers
again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..audit import load
from .layers import add_constant, constant

_LEVELS = {ir.DataType.INT8: (-128.0, 127.0), ir.DataType.UINT8: (0.0, 255.0)}
_FLOAT = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def write(source: Path, destination: Path) -> None:
    """Write the quantized graph `source` with its integer operators in floats."""
    model = load(source)
    for node in list(model.graph):
        if node.op_type in _FLOAT:
            _rewrite(model, node)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            _dequantize(model, node)
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Cast" else None
        if value is not None and value.dtype == ir.DataType.FLOAT:  # it was made of integers before
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    ir.save(model, destination)


def _dequantize(model: ir.Model, node: ir.Node) -> None:
    """Weights as the floats that they stand for; of an activation, what its integers stand for, by rounding it.

    Only where zero is 0; what is read back from another zero point is left as it is.
    """
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
        there = stored.producer()
        if there is None or there.op_type != "QuantizeLinear" or constant(zero).any():
            return
        low, high = (add_constant(model, f"{old.name}_{end}", np.float32(end)) for end in _LEVELS[zero.dtype])  # type: ignore[index]
        divided = ir.node("Div", [there.inputs[0], scale])
        rounded = ir.node("Round", [divided.outputs[0]])
        clipped = ir.node("Clip", [rounded.outputs[0], low, high])
        product = ir.node("Mul", [clipped.outputs[0], scale])
        model.graph.insert_before(node, [divided, rounded, clipped, product])
        new = product.outputs[0]
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
    floats = ir.node("Sub", [cast.outputs[0], offset])
    weights = add_constant(model, f"{weight.name}_float", constant(weight).astype(np.float32))
    product = ir.Node("", _FLOAT[node.op_type], [floats.outputs[0], weights], list(node.attributes.values()))
    model.graph.insert_before(node, [cast, floats, product])
    old, new = node.outputs[0], product.outputs[0]
    for value in (cast.outputs[0], floats.outputs[0], new):
        value.dtype = ir.DataType.FLOAT
    new.shape = old.shape
    for user, at in old.uses():
        if user.op_type == "Add":  # of the bias, which becomes float as well
            bias = user.inputs[1 - at]
            assert bias is not None
            user.replace_input_with(
                1 - at, add_constant(model, f"{bias.name}_float", constant(bias).astype(np.float32))
            )
            user.outputs[0].dtype = ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(node, safe=True)
