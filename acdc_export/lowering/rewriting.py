"""Helpers for passes that rewrite by pattern."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase, RewriteRuleSet


def rewrite(model: ir.Model, rules: Iterable[RewriteRule], *, commute: bool = False) -> None:
    """Apply `rules` to `model` in place; with `commute` the operands of each may come in either order.

    Afterwards constants are initializers and shapes are inferred: later passes and readers rely on both.
    """
    if not RewriteRuleSet(list(rules), commute=commute).apply_to_model(model):
        return
    passes = ir.passes.common
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.ShapeInferencePass()(model)


def rule(form: type[RewriteRuleClassBase], *arguments: Any) -> RewriteRule:
    """Make a rule of the class `form` with `arguments`."""
    typed: RewriteRule = form.rule(*arguments)  # type: ignore[no-untyped-call]
    return typed


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array that a value always has; None if it is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a value; None unless every dimension is a known number."""
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape if isinstance(dim, int))
