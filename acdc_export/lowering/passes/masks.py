"""What masks of attention are made of, less of it: once for all layers, without a mask that lets everything through.

A padding mask comes joined with one for the rows, which is true throughout, in each layer anew. DeepSparse doesn't know
the And that joins them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule, static_shape

_SMALL = 1024  # numbers in an initializer that is compared with others; weights are not


def run(model: ir.Model, *, batch_size: int) -> None:
    """Drop what is true throughout from what is added by a Where, and compute what is the same only once."""
    rewrite(model, [rule(_Joined)], commute=True)
    passes = ir.passes.common
    passes.DeduplicateInitializersPass(size_limit=_SMALL)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)


class _Joined(RewriteRuleClassBase):
    def __init__(self) -> None:
        super().__init__(remove_nodes=False)  # layers share them; what none of them needs any more goes later

    def pattern(self, op: Any, scores: Any, everything: Any, mask: Any, kept: Any, hidden: Any) -> Any:
        return op.Add(scores, op.Where(op.And(everything, mask), kept, hidden))

    def check(
        self, context: Any, scores: ir.Value, everything: ir.Value, mask: ir.Value, kept: ir.Value, hidden: ir.Value
    ) -> MatchResult:
        found = MatchResult()
        shape, narrow, passing = static_shape(scores), static_shape(mask), constant(everything)
        if passing is None or not passing.all():
            return found.fail("it hides something")
        if shape is None or narrow is None or static_shape(kept) != () or static_shape(hidden) != ():
            return found.fail("how it is broadcast is not known")
        for part in (narrow, passing.shape):
            if len(part) > len(shape) or np.broadcast_shapes(part, shape) != shape:
                return found.fail("it makes the scores larger")
        return found

    def rewrite(
        self, op: Any, scores: ir.Value, everything: ir.Value, mask: ir.Value, kept: ir.Value, hidden: ir.Value
    ) -> Any:
        return op.Add(scores, op.Where(mask, kept, hidden))
