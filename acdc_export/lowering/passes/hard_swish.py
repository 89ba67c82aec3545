"""Rewrite HardSwish and HardSigmoid as the sums and clips that they stand for.

DeepSparse knows neither operator. One HardSwish takes the whole graph off the sparse path.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase

from ..rewriting import rewrite, rule

_ALPHA, _BETA = 0.2, 0.5  # of HardSigmoid, where it names none


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite every HardSwish and HardSigmoid."""
    rewrite(model, [RewriteRule(lambda op, x: op.HardSwish(x), _hard_swish), rule(_HardSigmoid)])


def _hard_swish(op: Any, x: ir.Value) -> Any:
    return op.Mul(x, _ramp(op, x, 1 / 6, 0.5))


class _HardSigmoid(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.HardSigmoid(x, _outputs=["result"])

    def rewrite(self, op: Any, x: ir.Value, result: ir.Value) -> Any:
        node = result.producer()
        assert node is not None
        return _ramp(op, x, node.attributes.get_float("alpha", _ALPHA), node.attributes.get_float("beta", _BETA))


def _ramp(op: Any, x: ir.Value, alpha: float, beta: float) -> Any:
    """Return max(0, min(1, alpha · x + beta)), written as alpha times a clipped (x + beta / alpha)."""
    shifted = op.Add(x, op.Constant(value_float=beta / alpha))
    clipped = op.Clip(shifted, op.Constant(value_float=0.0), op.Constant(value_float=1 / alpha))
    return op.Mul(clipped, op.Constant(value_float=alpha))
