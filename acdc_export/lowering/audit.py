"""Zeros, and the groups of sparsity patterns, counted by position in the graph.

By position and not by name, because passes rename and rescale: folding a batch norm gives a weight another name
and other values, while the n-th weighted operator stays the n-th.

A weight is whatever constant reaches a weighted operator: an initializer, dense or sparse, or one behind Constant
nodes, Cast, Transpose, DequantizeLinear and anything else that is computed of constants alone. Of integers those are
zeros that equal the zero point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import GraphError
from ..patterns import USUAL, PatternKind
from ..records.inspection import Uncounted, WeightAudit
from . import constants

# Which input of an operator is the weight.
_WEIGHTED = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1}


class _Place(NamedTuple):
    """Where an operator takes a weight: the indices of its inputs for it and for its zero point."""

    weight: int
    zero: int | None = None


_LINEAR, _INTEGER = _Place(3, 5), _Place(1, 3)
_PLACES = {
    "Conv": (_Place(1),),
    "ConvInteger": (_INTEGER,),
    "ConvTranspose": (_Place(1),),
    "Gemm": (_Place(1),),
    "MatMul": (_Place(1), _Place(0)),  # the weight stands on the left where nothing constant is on the right
    "MatMulInteger": (_INTEGER, _Place(0, 2)),
    "QLinearConv": (_LINEAR,),
    "QLinearMatMul": (_LINEAR, _Place(0, 2)),
    "com.microsoft.FusedConv": (_Place(1),),
    "com.microsoft.FusedGemm": (_Place(1),),
    "com.microsoft.FusedMatMul": (_Place(1), _Place(0)),
    "com.microsoft.QGemm": (_LINEAR,),
    "com.microsoft.DynamicQuantizeMatMul": (_INTEGER,),
    "com.microsoft.MatMulIntegerToFloat": (_Place(1, 5), _Place(0, 4)),
}
"""Operators with a weight, those of other domains than ONNX's own after their domain; the first place that holds a
constant is taken."""

_UNREAD = {"LSTM", "GRU", "RNN", "Einsum"}
"""Operators of ONNX's own that may hold weights and are not counted."""

_UNWEIGHTED = {
    "BiasGelu",
    "FastGelu",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearSoftmax",
    "DequantizeLinear",
}
"""Operators of other domains that read tables, biases or activations, and no weights."""


@dataclass(frozen=True)
class Contents:
    """What the weighted operators of a graph hold."""

    weights: tuple[WeightAudit, ...]
    uncounted: tuple[Uncounted, ...]


def load(path: Path) -> ir.Model:
    """Read an ONNX file; sparse initializers become dense ones. Raises `GraphError` where it is not one."""
    try:
        proto = onnx.load(path, load_external_data=False)  # onnx_ir maps it into memory, where it is read
        constants.densify(proto.graph)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        model.graph.sort()
    except Exception as error:  # protobuf, onnx_ir and the file system each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphError(
            f"{path} can't be read as ONNX: {reason}", "Export the model again; it may be cut off."
        ) from error
    if not model.graph.outputs:
        raise GraphError(f"{path} holds no ONNX graph.", "Export the model again; it may be cut off.")
    return model


def audit(model: ir.Model, kinds: Sequence[PatternKind] = USUAL) -> tuple[WeightAudit, ...]:
    """Count the zeros of every weighted operator (Conv, Gemm, MatMul and their integer forms), and the groups that
    each of `kinds` has there."""
    return contents(model, kinds).weights


def contents(model: ir.Model, kinds: Sequence[PatternKind] = USUAL) -> Contents:
    """As `audit` does, and name the operators that hold weights which can't be counted, with the reason.

    Raises:
        GraphError: the file that holds a weight's data is missing or too short.
    """
    weights: list[WeightAudit] = []
    uncounted: list[Uncounted] = []
    for node in model.graph:
        try:
            weight = _weight(node, model.opset_imports)
        except constants.NotComputable as error:
            uncounted.append(Uncounted(node.op_type, node.name or "", str(error)))
            continue
        if weight is not None:
            place, name, array = weight
            weights.append(count(len(weights), node.op_type, name, array, _inner(node, place, array), kinds))
        else:
            uncounted += _uncounted(node, model)
    return Contents(tuple(weights), tuple(uncounted))


def _weight(node: ir.Node, opsets: Mapping[str, int]) -> tuple[int, str, NDArray[Any]] | None:
    """The input of `node` that is its weight, the weight's name, and an array that is 0 where the weight is; None where
    there is none. Raises `NotComputable` for one that is constant and can't be computed."""
    for place in _PLACES.get(_name(node), ()):
        value = _input(node, place.weight)
        if value is None or not constants.is_constant(value):
            continue
        stored = constants.stored(value)
        zero = _input(node, place.zero) if place.zero is not None else None
        array = constants.evaluate(value, opsets)
        if zero is not None:
            if not constants.is_constant(zero):
                raise constants.NotComputable("its zero point is computed at run time")
            array = constants.shift(array, constants.evaluate(zero, opsets), _outer(node, array))
        if array.ndim >= 2 and array.size:
            return place.weight, stored.name or "", array
    return None


def _uncounted(node: ir.Node, model: ir.Model) -> Iterator[Uncounted]:
    """The weights of a node that is not looked into: other domains' operators, functions and subgraphs."""
    name, label = _name(node), node.name or ""
    if node.op_identifier() in model.functions:
        if any(_name(inner) in _PLACES or inner.domain not in _OWN for inner in model.functions[node.op_identifier()]):
            yield Uncounted(node.op_type, label, "its weights are used inside a function")
        return
    if any(_name(inner) in _PLACES for inner in _inside(node)):
        yield Uncounted(node.op_type, label, "its weights are used inside a subgraph")
    if name in _UNREAD or (node.domain not in _OWN and name not in _PLACES and node.op_type not in _UNWEIGHTED):
        held = [value for value in node.inputs if value is not None and constants.is_constant(value)]
        large = [constants.stored(value) for value in held if constants.rank(value) >= 2]
        if large:
            where = f" of {node.domain}" if node.domain not in _OWN else ""
            yield Uncounted(node.op_type, large[0].name or label, f"weights of {node.op_type}{where} are not read")


_OWN = ("", "ai.onnx")


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of a node's subgraphs, and of theirs."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _name(node: ir.Node) -> str:
    return node.op_type if node.domain in _OWN else f"{node.domain}.{node.op_type}"


def _input(node: ir.Node, at: int) -> ir.Value | None:
    return node.inputs[at] if at < len(node.inputs) else None


def pruned(canonical: Sequence[WeightAudit], layers: Mapping[str, tuple[int, int]]) -> list[int] | None:
    """The positions of the pruned layers, given as `{weight name: (zeros, total)}`, in a canonical graph.

    By name, and where an exporter renamed a weight (a transposed Linear), by its counts. None if one isn't found.
    """
    left = {weight.position: weight for weight in canonical}
    positions, renamed = [], []
    for name, counts in layers.items():
        match = next((weight for weight in left.values() if weight.name == name), None)
        if match is None:
            renamed.append(counts)
        else:
            positions.append(left.pop(match.position).position)
    for zeros, total in renamed:
        match = next((weight for weight in left.values() if (weight.zeros, weight.total) == (zeros, total)), None)
        if match is None:
            return None
        positions.append(left.pop(match.position).position)
    return sorted(positions)


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a weighted operator, in integers where it is stored so; None of any other node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _WEIGHTED:
        return None
    wanted = [_WEIGHTED[node.op_type]] + ([0] if node.op_type.startswith("MatMul") else [])
    inputs = [_integers(node.inputs[at]) for at in wanted if at < len(node.inputs)]
    return next((value for value in inputs if _constant(value)), None)


def _integers(value: ir.Value | None) -> ir.Value | None:
    """What a weight is stored as: the integers behind DequantizeLinear, or itself."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) >= 2


def count(
    position: int,
    operator: str,
    name: str,
    weight: NDArray[Any],
    inner: int,
    kinds: Sequence[PatternKind] = USUAL,
) -> WeightAudit:
    """Count one weight, of two dimensions or more; `inner` is the axis of its input channels."""
    total = int(weight.size)
    return WeightAudit(
        position=position,
        operator=operator,
        name=name,
        shape=tuple(weight.shape),
        zeros=total - int(np.count_nonzero(weight)),
        total=total,
        patterns={kind.name: kind.count_groups(weight, inner) for kind in kinds},
        finite=bool(np.isfinite(weight).all()),
    )


def inner_axis(node: ir.Node, weight: NDArray[Any]) -> int:
    """The axis of the input channels: Conv weights are (K, C, R, S), MatMul's (.., C, K), Gemm's depend on transB."""
    if "MatMul" in node.op_type:
        return weight.ndim - 2
    if node.op_type.endswith("Gemm"):  # QGemm and FusedGemm too
        transposed = node.attributes.get("transB")
        return 1 if transposed is not None and transposed.as_int() else 0
    return 0 if node.op_type == "ConvTranspose" else 1


def _inner(node: ir.Node, place: int, weight: NDArray[Any]) -> int:
    """As `inner_axis`, for weights on the left too, which are (.., K, C)."""
    return weight.ndim - 1 if place == 0 else inner_axis(node, weight)


def _outer(node: ir.Node, weight: NDArray[Any]) -> int:
    """The axis that zero points lie along where there is more than one: that of the output channels."""
    if "MatMul" in node.op_type:
        return weight.ndim - 1
    return 1 - inner_axis(node, weight) if node.op_type.endswith("Gemm") else 0
