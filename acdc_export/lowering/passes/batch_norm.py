"""Rewrite a BatchNormalization that could not be folded into a layer as the Mul and Add that it is.

DeepSparse runs these two faster where a batch norm stands between other elementwise operators (as DenseNet's do, behind
Concat). Before QuantizeLinear a batch norm stops it with an assertion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule

_EPSILON = 1e-5  # where the operator names none


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite every batch norm whose statistics are initializers."""
    rewrite(model, [rule(_BatchNorm)])


class _BatchNorm(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return op.BatchNormalization(x, scale, bias, mean, variance, _outputs=["result"])

    def check(
        self, context: Any, x: ir.Value, scale: Any, bias: Any, mean: Any, variance: Any, result: Any
    ) -> MatchResult:
        match = MatchResult()
        if x.shape is None:
            return match.fail("its rank is not known")
        if any(constant(value) is None for value in (scale, bias, mean, variance)):
            return match.fail("its statistics are computed")
        return match

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        mean: ir.Value,
        variance: ir.Value,
        result: ir.Value,
    ) -> Any:
        node = result.producer()
        assert node is not None
        assert x.shape is not None
        gamma, beta, centre, spread = (
            np.asarray(constant(value), dtype=np.float64) for value in (scale, bias, mean, variance)
        )
        factor = gamma / np.sqrt(spread + node.attributes.get_float("epsilon", _EPSILON))
        along = (1, -1, *[1] * (len(x.shape) - 2))
        multiplier, offset = (
            op.Constant(value=ir.tensor(array.astype(np.float32).reshape(along)))
            for array in (factor, beta - centre * factor)
        )
        return op.Add(op.Mul(x, multiplier), offset)
