"""Fused operators: what a compiler can run as one, reading uint8 activations and writing one.

Between the activations that a fused operator reads and the one that it writes, nothing is rounded. It is one of

    layer       Conv, Gemm or MatMul [-> Add (a MatMul's bias)] [-> Add (residual)] [-> Relu or Clip]
    function    any elementwise operators on one activation: Sigmoid and Mul (SiLU), HardSwish, GELU, LeakyRelu, ...
    affine      BatchNormalization, or arithmetic with a constant for each channel [-> Relu or Clip]
    arithmetic  Add, Sub or Mul of two activations [-> Relu or Clip]
    single      Concat along channels, pooling, a mean over height and width, and what only moves values

Operators that are in none of them stay in FP32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import rewriting
from .layers import Layer, find, is_only

MOVING = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
"""Operators whose output has the values of their first input, no more and no fewer."""

_CHOOSING = {"GlobalMaxPool", "MaxPool", "Pad"}
"""Operators whose output has values of their input, and no others but 0."""

_AVERAGING = {"AveragePool", "GlobalAveragePool", "ReduceMean"}
_FUNCTIONS = {
    *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg"),
    *("PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
}
"""Elementwise functions that stay finite at 0, to which small values are rounded."""

_ARITHMETIC = {"Add", "Div", "Mul", "Pow", "Sub"}
_ELEMENTWISE = {*_FUNCTIONS, *_ARITHMETIC, "BatchNormalization"}
_LONGEST = 32  # operators that are tried as one; GELU by tanh, the longest that is common, has 9


@dataclass(frozen=True, eq=False)
class Fused:
    """Operators that run as one."""

    nodes: tuple[ir.Node, ...]  # in order
    reads: tuple[ir.Value, ...]  # the activations that come from outside
    layer: Layer | None = None  # the layer among them

    @property
    def writes(self) -> ir.Value:
        """The only activation that others may read."""
        return self.nodes[-1].outputs[0]

    @property
    def operator(self) -> str:
        """The first operator's type."""
        return self.nodes[0].op_type

    @property
    def keeps_values(self) -> bool:
        """Whether the activation that it writes has values of the one that it reads, and no others but 0."""
        return self.operator in MOVING | _CHOOSING


def fuse(model: ir.Model) -> list[Fused]:
    """Return the fused operators of a model in order; none overlap. Shapes are inferred first."""
    ir.passes.common.ShapeInferencePass()(model)
    return _Fuser(model).run()


@dataclass(frozen=True, eq=False)
class _Operator:
    """An operator of ONNX's own that makes one FP32 value of FP32 values."""

    node: ir.Node
    position: int  # in the graph
    reads: tuple[ir.Value, ...]  # the inputs that are computed, without sizes (such as those that Reshape takes)

    @property
    def kind(self) -> str:
        return self.node.op_type

    @property
    def writes(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def clips(self) -> bool:
        """Whether it limits values by constants."""
        return self.kind in ("Clip", "Relu") and len(self.reads) == 1

    def constants(self) -> list[NDArray[Any] | None]:
        """The inputs that are not computed at run time; None for one that is computed of constants."""
        others = (value for value in self.node.inputs if value is not None and value not in self.reads)
        return [rewriting.constant(value) for value in others]


class _Fuser:
    """Fuses from the last operator to the first, so that of two layers that feed an Add the last one takes it."""

    def __init__(self, model: ir.Model) -> None:
        operators = list(_operators(model))
        self.of = {operator.node: operator for operator in operators}
        self.layers = {layer.node: layer for layer in find(model)}
        self.taken: set[_Operator] = set()

    def run(self) -> list[Fused]:
        last_first = sorted(self.of.values(), key=_position, reverse=True)
        fused = [self._take(self._behind(operator)) for operator in last_first if operator.node in self.layers]
        free = (operator for operator in last_first if operator not in self.taken)
        fused += [self._take(operators) for operator in free if (operators := self._before(operator))]
        return sorted(fused, key=lambda it: self.of[it.nodes[-1]].position)

    def _take(self, operators: Sequence[_Operator]) -> Fused:
        self.taken.update(operators)
        first = operators[0].node
        return Fused(tuple(operator.node for operator in operators), _reads(operators), self.layers.get(first))

    def _behind(self, layer: _Operator) -> list[_Operator]:
        """A layer, and what runs with it behind it."""
        operators, residual = [layer], False
        while is_only(value := operators[-1].writes):
            ((node, _),) = value.uses()
            follower = self.of.get(node)
            if follower is None or follower in self.taken:
                break
            if follower.clips:
                return [*operators, follower]
            if layer.kind == "MatMul" and len(operators) == 1 and _adds_bias(follower):
                operators.append(follower)
            elif not residual and _adds_alike(follower):
                operators.append(follower)
                residual = True
            else:
                break
        return operators

    def _before(self, last: _Operator) -> list[_Operator]:
        """The most operators up to `last` that run as one; none where it can't run in integers."""
        if _is_single(last):
            return [last]
        operators: list[_Operator] = []
        for candidate in self._growing(last):
            if _is_function(candidate) or _is_affine(candidate) or _is_arithmetic(candidate):
                operators = candidate
        return operators

    def _growing(self, last: _Operator) -> Iterator[list[_Operator]]:
        """Yield `last`, with one more operator before it each time, in order.

        An operator joins when all that read it have. So all operators between an activation and `last` join before the
        one that makes the activation.
        """
        joined = [last]
        while last.kind in _ELEMENTWISE and len(joined) <= _LONGEST:
            yield joined
            inner = [operator for value in _reads(joined) if (operator := self._inner(value, joined)) is not None]
            if not inner:
                return
            joined = sorted([*joined, max(inner, key=_position)], key=_position)

    def _inner(self, value: ir.Value, joined: Sequence[_Operator]) -> _Operator | None:
        """The elementwise operator that makes a value for none but the `joined`."""
        node = value.producer()
        operator = self.of.get(node) if node is not None else None
        if operator is None or operator in self.taken or operator.kind not in _ELEMENTWISE:
            return None
        nodes = {other.node for other in joined}
        alone = not value.is_graph_output() and all(user in nodes for user in value.consumers())
        return operator if alone else None


def _operators(model: ir.Model) -> Iterator[_Operator]:
    computed = {value for value in model.graph.inputs if value.const_value is None}
    for position, node in enumerate(model.graph):
        subgraphs = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if not subgraphs and computed.isdisjoint(node.inputs):
            continue
        computed.update(node.outputs)
        inputs = node.inputs[:1] if node.op_type in MOVING else node.inputs
        reads = tuple(value for value in inputs if value is not None and value in computed)
        if (
            reads
            and not subgraphs
            and node.domain in ("", "ai.onnx")
            and all(value.dtype == ir.DataType.FLOAT for value in (*reads, node.outputs[0]))
            and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        ):
            yield _Operator(node, position, reads)


def _position(operator: _Operator) -> int:
    return operator.position


def _reads(operators: Sequence[_Operator]) -> tuple[ir.Value, ...]:
    """The activations that come from outside."""
    inner = {operator.writes for operator in operators}
    return tuple(dict.fromkeys(value for operator in operators for value in operator.reads if value not in inner))


def _adds_bias(operator: _Operator) -> bool:
    """Whether it adds a constant for each output of a MatMul, which are along the last axis."""
    if operator.kind != "Add" or len(operator.reads) != 1:
        return False
    (array,) = operator.constants()
    return array is not None and array.ndim > 0 and array.size == array.shape[-1]


def _adds_alike(operator: _Operator) -> bool:
    """Whether it adds two activations of the same shape."""
    if operator.kind != "Add" or len(operator.reads) != 2:
        return False
    a, b = (value.shape for value in operator.reads)
    return a is not None and b is not None and len(a) == len(b) >= 2 and a[1:] == b[1:]


def _is_function(operators: Sequence[_Operator]) -> bool:
    return len(_reads(operators)) == 1 and all(
        operator.kind in _FUNCTIONS | _ARITHMETIC
        and _is_finite(operator)
        and all(array is not None and array.size == 1 for array in operator.constants())
        for operator in operators
    )


def _is_finite(operator: _Operator) -> bool:
    """Whether it makes finite values of finite ones: no quotient by what may be 0, and no root."""
    if operator.kind not in ("Div", "Pow"):
        return True
    second = rewriting.constant(operator.node.inputs[1])
    if second is None:
        return False
    values = second.astype(np.float64)
    return bool(values.all()) if operator.kind == "Div" else bool((values >= 1).all() and (values % 1 == 0).all())


def _is_affine(operators: Sequence[_Operator]) -> bool:
    """Whether it is one operator behind the other, each with a constant for each channel."""
    *before, last = operators
    return (
        len(_reads(operators)) == 1
        and all(len(operator.reads) == 1 for operator in operators)
        and all(map(_has_channel_constants, before))
        and (_has_channel_constants(last) or (bool(before) and last.clips))
    )


def _has_channel_constants(operator: _Operator) -> bool:
    arrays, shape = operator.constants(), operator.writes.shape
    if shape is None or len(shape) < 2 or any(array is None for array in arrays):
        return False
    if operator.kind == "BatchNormalization":
        return True
    if operator.kind not in ("Add", "Div", "Mul", "Sub") or not _is_finite(operator):
        return False
    sizes = [1] * (len(shape) - arrays[0].ndim) + list(arrays[0].shape)  # type: ignore[union-attr]
    return len(sizes) == len(shape) and all(size == 1 for axis, size in enumerate(sizes) if axis != 1)


def _is_arithmetic(operators: Sequence[_Operator]) -> bool:
    first, *behind = operators
    return (
        first.kind in ("Add", "Mul", "Sub")
        and len(first.reads) == 2
        and _fit(*first.reads)
        and (not behind or (len(behind) == 1 and behind[0].clips))
    )


def _fit(a: ir.Value, b: ir.Value) -> bool:
    """Whether two activations are alike, or one of them has a value for each channel: (batch, channels, 1, 1)."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape) or len(a.shape) < 2:
        return False
    (_, channels, *size), (_, other_channels, *other_size) = a.shape, b.shape
    return bool(channels == other_channels) and (size == other_size or [1] * len(size) in (size, other_size))


def _is_single(operator: _Operator) -> bool:
    """Whether it runs in integers by itself, and is neither a layer nor elementwise."""
    if operator.kind == "Concat":
        shape, axis = operator.writes.shape, operator.node.attributes.get_int("axis", 0)
        whole = len(operator.reads) == len(operator.node.inputs)
        return whole and shape is not None and len(shape) >= 2 and axis % len(shape) == 1
    if operator.kind == "ReduceMean":
        return _is_over_space(operator)
    if operator.kind == "Pad":
        return _pads_with_zeros(operator)
    return operator.kind in MOVING | _CHOOSING | _AVERAGING


def _is_over_space(mean: _Operator) -> bool:
    """Whether a mean is over all axes behind that of the channels."""
    named, shape = mean.node.attributes.get_ints("axes"), mean.reads[0].shape
    axes = list(named or ()) + [int(axis) for array in mean.constants() if array is not None for axis in array.ravel()]
    return shape is not None and len(shape) >= 3 and {axis % len(shape) for axis in axes} == set(range(2, len(shape)))


def _pads_with_zeros(pad: _Operator) -> bool:
    inputs = pad.node.inputs
    if pad.node.attributes.get_string("mode", "constant") != "constant" or len(pad.reads) != 1:
        return False
    value = rewriting.constant(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
    if value is None:
        return len(inputs) < 3 or inputs[2] is None
    return not value.any()
