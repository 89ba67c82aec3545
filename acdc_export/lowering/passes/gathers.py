"""Remove gathers whose indices are constant.

A gather of a constant is computed here. A gather of everything in its order becomes a Reshape. Transformers look up
masks and positions this way: the mask by GatherND with an index for each position, token types by GatherElements of a
buffer. In a static graph the indices are constants. A gather that stays would run off the sparse path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule, static_shape

Array = NDArray[Any]


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite Gather, GatherElements and GatherND (without batch dimensions)."""
    rewrite(model, [rule(_Gathered, name, look_up) for name, look_up in _GATHERS.items()])


def _gather(data: Array, indices: Array, node: ir.Node) -> Array:
    return np.asarray(np.take(data, indices, axis=node.attributes.get_int("axis", 0)))


def _gather_elements(data: Array, indices: Array, node: ir.Node) -> Array:
    axis = node.attributes.get_int("axis", 0)
    # Positions in `data` are those in `indices`, but along one axis.
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return np.asarray(data[tuple(grid)])


def _gather_nd(data: Array, indices: Array, node: ir.Node) -> Array:
    return np.asarray(data[tuple(np.moveaxis(indices, -1, 0))])


_GATHERS: dict[str, Callable[[Array, Array, ir.Node], Array]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
}


class _Gathered(RewriteRuleClassBase):
    def __init__(self, operator: str, look_up: Callable[[Array, Array, ir.Node], Array]) -> None:
        super().__init__()
        self.operator, self.look_up = operator, look_up

    def pattern(self, op: Any, data: Any, indices: Any) -> Any:
        return getattr(op, self.operator)(data, indices, _outputs=["result"])

    def check(self, context: Any, data: ir.Value, indices: ir.Value, result: ir.Value) -> MatchResult:
        match = MatchResult()
        node, shape, chosen = result.producer(), static_shape(data), constant(indices)
        assert node is not None
        if shape is None or chosen is None or node.attributes.get_int("batch_dims", 0) != 0:
            return match.fail("its shape or indices are known only when it runs")
        everything = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        order = self.look_up(everything, chosen, node)
        if constant(data) is not None and order.size > everything.size:
            return match.fail("the file would grow")  # by a row of a table for every position and sample
        if constant(data) is None and not np.array_equal(order.ravel(), everything.ravel()):
            return match.fail("it chooses, or changes the order")
        return match

    def rewrite(self, op: Any, data: ir.Value, indices: ir.Value, result: ir.Value) -> Any:
        node, known, chosen = result.producer(), constant(data), constant(indices)
        assert node is not None
        assert chosen is not None
        if known is not None:
            return op.Constant(value=ir.tensor(self.look_up(known, chosen, node)))
        shape = self.look_up(np.empty(static_shape(data) or (), np.bool_), chosen, node).shape
        return op.Reshape(data, op.Constant(value_ints=list(shape)))
