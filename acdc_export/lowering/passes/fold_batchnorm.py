"""Fold BatchNormalization into the Conv or Gemm before it.

A weight becomes w * gamma / sqrt(var + eps), one factor for each output channel, so a zero stays a zero.
Canonical graphs come unfolded, so that their weights are the ones of the state dict.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules


def run(model: ir.Model, *, batch_size: int) -> None:
    """Fold each batch norm whose statistics are initializers and whose input nothing else reads."""
    RewriteRuleSet(
        [
            rules.fuse_batchnorm_into_conv_rule,
            rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ]
    ).apply_to_model(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
