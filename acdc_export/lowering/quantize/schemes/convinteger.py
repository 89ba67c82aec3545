"""The INT8 form that DeepSparse fuses: ConvInteger and MatMulInteger, uint8 activations, one scale for each weight.

    x -> QuantizeLinear -> ConvInteger -> Add (bias, int32) -> Cast -> Mul (scale) -> as before

Weights are symmetric, so that a zero stays zero. One scale serves a whole weight: with one for each channel the engine
runs the form, but doesn't fuse it. An Add around a residual block reads the activation back from the uint8 that the
block takes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..bias import corrected
from ..calibration import Calibration, Range
from ..layers import Layer, add_constant, constant, find

_MOST = 2**30
"""The greatest bias in int32: as much again is left for the products that it is added to."""


def run(model: ir.Model, calibration: Calibration, keep: Collection[str] = (), weight_bits: int = 8) -> None:
    """Rewrite all layers of a model in place, except those whose weights are named in `keep`.

    Raises:
        GraphError: an activation was not calibrated.
    """
    quantized: dict[str, _Quantized] = {}
    for layer in list(find(model)):
        name = layer.activation.name or ""
        if layer.name in keep:
            continue
        if name not in quantized:
            quantized[name] = _Quantized(model, layer.activation, calibration.range_of(name, layer.name))
        _rewrite(model, layer, quantized[name], calibration.means[name], 2 ** (weight_bits - 1) - 1)
    _read_back(model, quantized)
    ir.passes.common.RemoveUnusedNodesPass()(model)


class _Quantized:
    """An activation as uint8, quantized once for all layers that read it."""

    def __init__(self, model: ir.Model, value: ir.Value, limits: Range) -> None:
        self.value = value
        self.scale = np.float32((limits.high - limits.low) / 255)
        zero = np.uint8(np.clip(round(-limits.low / float(self.scale)), 0, 255))
        name = value.name or "x"
        self.inputs = [
            add_constant(model, f"{name}_scale", self.scale),
            add_constant(model, f"{name}_zero_point", zero),
        ]
        node = ir.node("QuantizeLinear", inputs=[value, *self.inputs])
        self.output = node.outputs[0]
        self.output.name = f"{name}_quantized"
        self.output.dtype = ir.DataType.UINT8
        self.output.shape = value.shape
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(model.graph[0], node)
        else:
            model.graph.insert_after(producer, node)
        self.node = node


def _scale_of(layer: Layer, x: _Quantized, levels: int) -> np.float32:
    """The scale of a weight.

    It is larger than what the weight asks for where the bias would not fit into int32 otherwise: beside such a bias,
    the weight hardly counts. A layer that is zero throughout has nothing but its bias.
    """
    step = float(x.scale)
    bias = 0.0 if layer.bias is None else float(np.abs(constant(layer.bias)).max(initial=0.0))
    scale = max(float(np.abs(layer.array).max()) / levels, bias / (step * _MOST)) or 1.0
    return np.float32(max(scale, float(np.finfo(np.float32).tiny) / step))  # FP32 has the product with `step`, too


def _rewrite(model: ir.Model, layer: Layer, x: _Quantized, mean: NDArray[np.float64], levels: int) -> None:
    node, name = layer.node, layer.name
    weight = layer.array
    if node.op_type == "Gemm" and layer.outputs == 0:
        weight = weight.T  # MatMulInteger has no transB
    scale = _scale_of(layer, x, levels)  # one for the whole weight
    integers = np.clip(np.round(weight / scale), -levels, levels).astype(np.int8)
    zero = add_constant(model, f"{name}_zero_point", np.int8(0))
    inputs = [x.output, add_constant(model, f"{name}_quantized", integers), x.inputs[1], zero]
    attributes = list(node.attributes.values()) if node.op_type == "Conv" else []
    nodes = [ir.Node("", "ConvInteger" if node.op_type == "Conv" else "MatMulInteger", inputs, attributes)]
    bias = corrected(layer, weight - integers * scale, mean)
    if node.op_type != "MatMul":
        step = scale * x.scale
        shape = (1, -1, *[1] * (weight.ndim - 2)) if node.op_type == "Conv" else (-1,)
        steps = np.clip(np.round(bias / step), -(2**31), 2**31 - 128).astype(np.int32).reshape(shape)
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], add_constant(model, f"{name}_bias_quantized", steps)]))
    for added in nodes:
        added.outputs[0].dtype = ir.DataType.INT32
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT}))
    nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], add_constant(model, f"{name}_rescale", scale * x.scale)]))
    old, new = node.outputs[0], nodes[-1].outputs[0]
    for added in nodes:
        added.outputs[0].shape = old.shape
    model.graph.insert_after(node, nodes)
    title, new.dtype = old.name, ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    new.name = title


def _read_back(model: ir.Model, quantized: dict[str, _Quantized]) -> None:
    """Let every Add read an activation from its uint8, where there is one."""
    for x in quantized.values():
        adds = [(node, at) for node, at in x.value.uses() if node.op_type == "Add"]
        if not adds or x.value.is_graph_input():
            continue
        back = ir.node("DequantizeLinear", [x.output, *x.inputs])
        back.outputs[0].dtype, back.outputs[0].shape = ir.DataType.FLOAT, x.value.shape
        model.graph.insert_after(x.node, back)
        for node, at in adds:
            node.replace_input_with(at, back.outputs[0])
