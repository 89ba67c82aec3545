"""What passes that rewrite by pattern share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase, RewriteRuleSet


def rewrite(model: ir.Model, rules: Iterable[RewriteRule], *, commute: bool = False) -> None:
    """Apply rules, each with its operands in either order if `commute`; leave constants as initializers, and shapes.

    Later passes and readers look for a constant among the initializers, and decide by shapes.
    """
    if not RewriteRuleSet(list(rules), commute=commute).apply_to_model(model):
        return
    passes = ir.passes.common
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.ShapeInferencePass()(model)


def rule(form: type[RewriteRuleClassBase], *arguments: Any) -> RewriteRule:
    """A rule of the class `form`, made with `arguments`."""
    made: RewriteRule = form.rule(*arguments)  # type: ignore[no-untyped-call]
    return made


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """What a value always is; None where it is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a value, if all of it is known as numbers."""
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape if isinstance(dim, int))
