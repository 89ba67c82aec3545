"""Write one batch size into the graph: some engines choose their kernels by it, and some are slow without it."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from ...errors import GraphError


def run(model: ir.Model, *, batch_size: int) -> None:
    """Set the first dimension of every input to `batch_size`, and fold computed shapes into constants.

    Raises:
        GraphError: an input has another dynamic dimension, or a rank that is not known.
    """
    for value in model.graph.inputs:
        if value.shape is None:
            raise GraphError(f"The shape of input {value.name} is not known.", "Export the model with input shapes.")
        sizes: list[int] = []
        for at, dim in enumerate(value.shape):
            if isinstance(dim, int):
                sizes.append(dim)
            elif at == 0:
                sizes.append(batch_size)
            else:
                raise GraphError(
                    f"Dimension {at} of input {value.name} is dynamic ({dim}); this target takes static shapes.",
                    "Export the model with a fixed size there; only the batch may be symbolic.",
                )
        value.shape = ir.Shape(sizes)
    for node in model.graph:
        for output in node.outputs:
            output.shape = None  # it names the symbolic batch; shapes are inferred anew below
    for value in model.graph.outputs:
        value.shape = None
    ir.passes.common.ShapeInferencePass()(model)
    # It infers as it folds: a Reshape to a computed shape has a known shape only once that shape is folded.
    optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_is_evaluated_well)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _is_evaluated_well(node: ir.Node) -> bool | None:
    """Return False for GatherElements, at which onnx's reference evaluator fails: it wants as many indices as data.

    None leaves the choice to the optimizer.
    """
    return False if node.op_type == "GatherElements" else None
