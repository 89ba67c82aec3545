"""BatchNormalization that no layer could take up, as the product and the sum that it is.

Where one stands between other elementwise operators (DenseNet's do, behind Concat), DeepSparse runs it slower than
these two, and before QuantizeLinear it stops with an assertion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import constant, rewrite, rule

_EPSILON = 1e-5  # where the operator names none


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite each whose statistics are initializers."""
    rewrite(model, [rule(_BatchNorm)])


class _BatchNorm(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return op.BatchNormalization(x, scale, bias, mean, variance, _outputs=["result"])

    def check(
        self, context: Any, x: ir.Value, scale: Any, bias: Any, mean: Any, variance: Any, result: Any
    ) -> MatchResult:
        found = MatchResult()
        if x.shape is None:
            return found.fail("of unknown rank")
        if any(constant(value) is None for value in (scale, bias, mean, variance)):
            return found.fail("statistics that are computed")
        return found

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
        product, offset = (
            op.Constant(value=ir.tensor(array.astype(np.float32).reshape(along)))
            for array in (factor, beta - centre * factor)
        )
        return op.Add(op.Mul(x, product), offset)
