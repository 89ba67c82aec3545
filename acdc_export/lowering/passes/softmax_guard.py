"""The guard that torch puts behind the softmax of attention, `Where(IsNaN(p), 0, p)`, left out where it never acts.

A softmax is NaN for a row that is -inf throughout, as a mask of -inf can leave it; masks of the largest negative
number, which the exporter writes for a boolean one, can't. DeepSparse doesn't know IsNaN. (Activations that are
themselves NaN or infinite stay NaN, where the guard would have hidden them.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule

_COMPUTED = {"MatMul", "Gemm", "Mul", "Div", "Reshape", "Transpose"}
"""What gives finite numbers as long as activations are: the products of attention, and what scales or moves them."""


def run(model: ir.Model, *, batch_size: int) -> None:
    """Leave it out wherever what is added to the softmax's input is known to leave something finite in each row."""
    rewrite(model, [rule(_Guard)])


class _Guard(RewriteRuleClassBase):
    def pattern(self, op: Any, scores: Any) -> Any:
        shares = op.Softmax(scores, _outputs=["shares"])
        return op.Where(op.IsNaN(shares), 0.0, shares)

    def check(self, context: Any, scores: ir.Value, shares: ir.Value) -> MatchResult:
        found = MatchResult()
        return found if _is_finite(scores) else found.fail("a row may be -inf throughout")

    def rewrite(self, op: Any, scores: ir.Value, shares: ir.Value) -> Any:
        node = shares.producer()
        assert node is not None
        return op.Softmax(scores, axis=node.attributes.get_int("axis", -1))


def _is_finite(value: ir.Value | None) -> bool:
    """Whether a value is finite by how it is made."""
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
