"""The layers that quantization works on: weighted operators with their activation, weight, bias and axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..audit import inner_axis, weight_of

QUANTIZABLE = ("Conv", "Gemm", "MatMul")
"""Operators that are quantized. ConvTranspose is not: no runtime at hand has an INT8 form of it."""


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul with a constant weight."""

    node: ir.Node
    weight: ir.Value
    outputs: int  # the axis of the weight's output channels
    inputs: int  # the axis of its input channels; a group's where there are groups
    groups: int

    @property
    def name(self) -> str:
        """The weight's name, by which users name the layer."""
        return self.weight.name or ""

    @property
    def activation(self) -> ir.Value:
        """The activation that goes in now: rewriting an earlier layer may have replaced the original one."""
        value = _activation(self.node, self.weight)
        assert value is not None
        return value

    @property
    def channels_in(self) -> int:
        """The number of input channels of all groups."""
        return int(self.array.shape[self.inputs]) * self.groups

    @property
    def channels_out(self) -> int:
        """The number of output channels of all groups."""
        return int(self.array.shape[self.outputs])

    @property
    def array(self) -> NDArray[np.float32]:
        """The weight's array."""
        return constant(self.weight)

    @property
    def bias(self) -> ir.Value | None:
        """The bias; None if the operator itself has none."""
        inputs = self.node.inputs
        return inputs[2] if self.node.op_type != "MatMul" and len(inputs) > 2 else None

    def matrix(self) -> NDArray[np.float32]:
        """Return the weight as (output channels, everything else); a view where that is possible."""
        array = np.moveaxis(self.array, self.outputs, 0)
        return array.reshape(len(array), -1)


def find(model: ir.Model) -> Iterator[Layer]:
    """Yield the layers of a graph in order, but for those of computed weights or biases, or of weights not float32."""
    for node in model.graph:
        weight = weight_of(node)
        if weight is None or node.op_type not in QUANTIZABLE or weight.dtype != ir.DataType.FLOAT:
            continue
        activation = _activation(node, weight)
        if activation is None or activation.const_value is not None or weight is node.inputs[0]:
            continue  # no runtime's INT8 form takes the weight on the left
        inner = inner_axis(node, constant(weight))
        outer = 0 if node.op_type == "Conv" else len(weight.const_value.shape) - 1  # type: ignore[union-attr]
        if node.op_type == "Gemm":
            if _number(node, "transA", 0) or _number(node, "alpha", 1.0) != 1 or _number(node, "beta", 1.0) != 1:
                continue
            outer = 1 - inner
        groups = int(_number(node, "group", 1)) if node.op_type == "Conv" else 1
        layer = Layer(node, weight, outer, inner, groups)
        if layer.bias is None or layer.bias.const_value is not None:
            yield layer


def _activation(node: ir.Node, weight: ir.Value) -> ir.Value | None:
    return node.inputs[1 - list(node.inputs).index(weight)]


def constant(value: ir.Value) -> NDArray[Any]:
    """Return the array of a constant value."""
    assert value.const_value is not None
    return value.const_value.numpy()


def replace_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer another array of the same shape and type."""
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def add_constant(model: ir.Model, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
    """Add an initializer. If its name is taken, it gets a number."""
    free, count = name, 0
    while free in model.graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(np.asarray(array), name=free)
    value = ir.Value(name=free, shape=ir.Shape(np.shape(array)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def is_only(value: ir.Value) -> bool:
    """Whether only one operator reads a value, and it is no output of the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT else attribute.as_int()
