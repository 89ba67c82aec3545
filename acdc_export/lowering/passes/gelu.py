"""Rewrite GELU by the error function, in any order of its factors, as x / √2 -> Erf -> + 1 -> · x -> · 0.5.

DeepSparse knows Erf in this one form, in which TorchScript wrote it. torch.export and others halve another factor
first, and that alone takes each GELU off the sparse path.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule

from ..rewriting import rewrite


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite every product of x, 1 + erf(x / √2) and a half."""
    roots = [_divided, _multiplied]
    orders = [_half_x, _half_sum, _half_product]
    canonical = (_divided, _half_product)
    rules = [
        RewriteRule(_Form(root, order), _canonical) for root in roots for order in orders if (root, order) != canonical
    ]
    rewrite(model, rules, commute=True)


class _Form:
    """A form of GELU: `root` is the way to write x / √2, `order` the order of the three factors."""

    def __init__(self, root: Any, order: Any) -> None:
        self.root, self.order = root, order

    def __call__(self, op: Any, x: Any) -> Any:
        return self.order(op, x, op.Add(op.Erf(self.root(op, x)), 1.0))


def _divided(op: Any, x: Any) -> Any:
    return op.Div(x, math.sqrt(2))


def _multiplied(op: Any, x: Any) -> Any:
    return op.Mul(x, math.sqrt(0.5))


def _half_x(op: Any, x: Any, plus_one: Any) -> Any:
    return op.Mul(op.Mul(x, 0.5), plus_one)


def _half_sum(op: Any, x: Any, plus_one: Any) -> Any:
    return op.Mul(x, op.Mul(plus_one, 0.5))


def _half_product(op: Any, x: Any, plus_one: Any) -> Any:
    return op.Mul(op.Mul(x, plus_one), 0.5)


def _canonical(op: Any, x: ir.Value) -> Any:
    quotient = op.Div(x, op.Constant(value_float=math.sqrt(2)))
    plus_one = op.Add(op.Erf(quotient), op.Constant(value_float=1.0))
    return op.Mul(op.Mul(x, plus_one), op.Constant(value_float=0.5))
