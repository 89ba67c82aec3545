"""Leave out the guard that torch puts behind the softmax of attention, `Where(IsNaN(p), 0, p)`, if it never acts.

DeepSparse doesn't know IsNaN. A softmax is NaN for a row that is -inf throughout, as a mask of -inf can leave it. Masks
of the largest negative number, which the exporter writes for a boolean one, can't. (Activations that are themselves NaN
or infinite stay NaN, where the guard would have hidden them.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule

_COMPUTED = {"MatMul", "Gemm", "Mul", "Div", "Reshape", "Transpose"}
"""Operators that give finite numbers for finite activations: attention's matrix products, scaling and moving."""


def run(model: ir.Model, *, batch_size: int) -> None:
    """Leave the guard out wherever the softmax's input is known to have something finite in each row."""
    rewrite(model, [rule(_Guard)])


class _Guard(RewriteRuleClassBase):
    def pattern(self, op: Any, scores: Any) -> Any:
        shares = op.Softmax(scores, _outputs=["shares"])
        return op.Where(op.IsNaN(shares), 0.0, shares)

    def check(self, context: Any, scores: ir.Value, shares: ir.Value) -> MatchResult:
        match = MatchResult()
        return match if _is_finite(scores) else match.fail("a row may be -inf throughout")

    def rewrite(self, op: Any, scores: ir.Value, shares: ir.Value) -> Any:
        node = shares.producer()
        assert node is not None
        return op.Softmax(scores, axis=node.attributes.get_int("axis", -1))


def _is_finite(value: ir.Value | None) -> bool:
    """Whether a value is finite, judged by the operators that compute it."""
    if value is None:
        return False
    array = constant(value)
    if array is not None:
        return bool(np.isfinite(array).all())
    node = value.producer()
    if node is None:  # an input, such as a mask
        return False
    if node.op_type == "Add":
        return all(_is_finite(term) for term in node.inputs)
    if node.op_type == "Where":
        return all(_is_finite(choice) for choice in node.inputs[1:])
    if node.op_type == "Expand":
        return _is_finite(node.inputs[0])
    return node.op_type in _COMPUTED
