"""Drop opset imports that no operator uses. Quantizers leave them, and some runtimes refuse unknown domains."""

from __future__ import annotations

import onnx_ir as ir


def run(model: ir.Model, *, batch_size: int) -> None:
    """Drop unused imports in the graph and its functions."""
    ir.passes.common.RemoveUnusedOpsetsPass()(model)
