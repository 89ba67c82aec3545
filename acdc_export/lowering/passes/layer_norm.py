"""Rewrite LayerNormalization, an operator since opset 17, as the arithmetic that it stands for.

DeepSparse doesn't know the operator. It knows mean, differences, squares and root: the form in which exporters wrote it
before opset 17.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase

from ..rewriting import rewrite, rule

_EPSILON = 1e-5  # where the operator names none
_AXES_AS_INPUT = 18  # since this opset ReduceMean takes its axes as an input


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite every LayerNormalization of float32 whose other outputs, mean and deviation, nothing reads."""
    rewrite(model, [rule(_LayerNorm, model.opset_imports.get("", 0))])


class _LayerNorm(RewriteRuleClassBase):
    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def pattern(self, op: Any, x: Any) -> Any:
        return op.LayerNormalization(x, _allow_other_inputs=True, _outputs=["result"])

    def check(self, context: Any, x: ir.Value, result: ir.Value) -> MatchResult:
        match = MatchResult()
        if x.dtype != ir.DataType.FLOAT:  # `stash_type` asks for casts of others
            return match.fail("not known to be float32")
        if x.shape is None:
            return match.fail("its rank is not known")
        return match

    def rewrite(self, op: Any, x: ir.Value, result: ir.Value) -> Any:
        node = result.producer()
        assert node is not None
        assert x.shape is not None
        rank = len(x.shape)
        axis = node.attributes.get_int("axis", -1) % rank
        axes = list(range(axis - rank, 0))
        epsilon = node.attributes.get_float("epsilon", _EPSILON)
        _, scale, *bias = node.inputs

        def mean(value: Any) -> Any:
            if self.opset < _AXES_AS_INPUT:
                return op.ReduceMean(value, axes=axes, keepdims=1)
            return op.ReduceMean(value, op.Constant(value_ints=axes), keepdims=1)

        differences = op.Sub(x, mean(x))
        variance = mean(op.Pow(differences, op.Constant(value_float=2.0)))
        deviation = op.Sqrt(op.Add(variance, op.Constant(value_float=epsilon)))
        normal = op.Mul(op.Div(differences, deviation), scale)
        return op.Add(normal, bias[0]) if bias and bias[0] is not None else normal
