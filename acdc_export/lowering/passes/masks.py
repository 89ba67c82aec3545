"""Simplify the masks of attention: compute them once for all layers, and drop a mask that lets everything through.

Every layer joins the padding mask anew with a mask for the rows, which is true throughout. DeepSparse doesn't know the
And that joins them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule, static_shape

_SMALL = 1024  # the most numbers in an initializer that is compared with others; weights have more


def run(model: ir.Model, *, batch_size: int) -> None:
    """Drop masks that are true throughout from what a Where adds to scores, and compute equal values only once."""
    rewrite(model, [rule(_Joined)], commute=True)
    passes = ir.passes.common
    passes.DeduplicateInitializersPass(size_limit=_SMALL)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)


class _Joined(RewriteRuleClassBase):
    def __init__(self) -> None:
        super().__init__(remove_nodes=False)  # layers share nodes; unused ones are removed afterwards

    def pattern(self, op: Any, scores: Any, everything: Any, mask: Any, kept: Any, hidden: Any) -> Any:
        return op.Add(scores, op.Where(op.And(everything, mask), kept, hidden))

    def check(
        self, context: Any, scores: ir.Value, everything: ir.Value, mask: ir.Value, kept: ir.Value, hidden: ir.Value
    ) -> MatchResult:
        match = MatchResult()
        shape, narrow, passing = static_shape(scores), static_shape(mask), constant(everything)
        if passing is None or not passing.all():
            return match.fail("it hides something")
        if shape is None or narrow is None or static_shape(kept) != () or static_shape(hidden) != ():
            return match.fail("its broadcasting is not known")
        for mask_shape in (narrow, passing.shape):
            if len(mask_shape) > len(shape) or np.broadcast_shapes(mask_shape, shape) != shape:
                return match.fail("it makes the scores larger")
        return match

    def rewrite(
        self, op: Any, scores: ir.Value, everything: ir.Value, mask: ir.Value, kept: ir.Value, hidden: ir.Value
    ) -> Any:
        return op.Add(scores, op.Where(mask, kept, hidden))
