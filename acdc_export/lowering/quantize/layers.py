"""The weighted operators of a graph, as quantization sees them: what goes in, the weight, the bias, and which axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..audit import inner_axis, weight_of

FLOAT = ("Conv", "Gemm", "MatMul")
"""What is quantized. ConvTranspose is not: no runtime at hand has an integer form of it."""


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul with a constant weight."""

    node: ir.Node
    weight: ir.Value
    outputs: int  # the axis of the weight's output channels
    inputs: int  # and of its input channels, of one group
    groups: int

    @property
    def name(self) -> str:
        """The weight's, by which users name a layer."""
        return self.weight.name or ""

    @property
    def activation(self) -> ir.Value:
        """What is multiplied, as it is now: a layer that was rewritten before this one may have replaced it."""
        value = _activation(self.node, self.weight)
        assert value is not None
        return value

    @property
    def channels_in(self) -> int:
        """The input channels of all groups."""
        return int(self.array.shape[self.inputs]) * self.groups

    @property
    def channels_out(self) -> int:
        """The output channels of all groups."""
        return int(self.array.shape[self.outputs])

    @property
    def array(self) -> NDArray[np.float32]:
        """The weight."""
        return constant(self.weight)

    @property
    def bias(self) -> ir.Value | None:
        """The bias, where the operator itself has one."""
        inputs = self.node.inputs
        return inputs[2] if self.node.op_type != "MatMul" and len(inputs) > 2 else None

    def matrix(self) -> NDArray[np.float32]:
        """The weight with its output channels first and everything else behind; a view where that is possible."""
        array = np.moveaxis(self.array, self.outputs, 0)
        return array.reshape(len(array), -1)


def find(model: ir.Model) -> Iterator[Layer]:
    """The layers of a graph in their order. Weights that are no float32, or come through other operators, are none."""
    for node in model.graph:
        weight = weight_of(node)
        if weight is None or node.op_type not in FLOAT or weight.dtype != ir.DataType.FLOAT:
            continue
        activation = _activation(node, weight)
        if activation is None or activation.const_value is not None or weight is node.inputs[0]:
            continue  # a weight on the left is multiplied from the other side: no runtime's integer form has that
        inner = inner_axis(node, constant(weight))
        outer = 0 if node.op_type == "Conv" else len(weight.const_value.shape) - 1  # type: ignore[union-attr]
        if node.op_type == "Gemm":
            if _number(node, "transA", 0) or _number(node, "alpha", 1.0) != 1 or _number(node, "beta", 1.0) != 1:
                continue
            outer = 1 - inner
        groups = int(_number(node, "group", 1)) if node.op_type == "Conv" else 1
        yield Layer(node, weight, outer, inner, groups)


def _activation(node: ir.Node, weight: ir.Value) -> ir.Value | None:
    return node.inputs[1 - list(node.inputs).index(weight)]


def constant(value: ir.Value) -> NDArray[Any]:
    """The array of a constant value."""
    assert value.const_value is not None
    return value.const_value.numpy()


def replace_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer another array of the same shape and type."""
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def add_constant(model: ir.Model, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
    """A new initializer. Where its name is taken, it gets a number."""
    free, count = name, 0
    while free in model.graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(np.asarray(array), name=free)
    value = ir.Value(name=free, shape=ir.Shape(np.shape(array)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def is_only(value: ir.Value) -> bool:
    """Whether one operator alone reads a value, and the graph doesn't give it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT else attribute.as_int()
