"""Zeros, and the groups of sparsity patterns, counted by position in the graph.

By position and not by name, because passes rename and rescale: folding a batch norm gives a weight another name
and other values, while the n-th weighted operator stays the n-th.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import GraphError
from ..patterns import USUAL, PatternKind
from ..records.inspection import WeightAudit

# Which input of an operator is the weight.
_WEIGHTED = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1}


def load(path: Path) -> ir.Model:
    """Read an ONNX file. Raises `GraphError` where it is not one."""
    try:
        model = ir.load(path)
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
    weights: list[WeightAudit] = []
    for node in model.graph:
        weight = weight_of(node)
        if weight is not None and weight.const_value is not None and weight.const_value.size:
            array = weight.const_value.numpy()
            weights.append(count(len(weights), node.op_type, weight.name or "", array, inner_axis(node, array), kinds))
    return tuple(weights)


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
    if node.op_type.startswith("MatMul"):
        return weight.ndim - 2
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 1 if transposed is not None and transposed.as_int() else 0
    return 0 if node.op_type == "ConvTranspose" else 1
