"""Rewrite ReduceMean over height and width, as `x.mean((2, 3))` is exported, as GlobalAveragePool.

DeepSparse has only GlobalAveragePool on its sparse path. A ReduceMean leaves the path without any error.
"""

from __future__ import annotations

import onnx_ir as ir


def run(model: ir.Model, *, batch_size: int) -> None:
    """Rewrite every ReduceMean over axes 2 and 3 of a four-dimensional tensor."""
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and _is_spatial(node):
            _rewrite(model, node)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _is_spatial(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4:
        return False
    axes = _axes(node)
    return axes is not None and {axis % 4 for axis in axes} == {2, 3}


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes: an attribute up to opset 17, an input since 18. None if they are computed."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    return [int(axis) for axis in node.inputs[1].const_value.numpy().reshape(-1)]


def _rewrite(model: ir.Model, node: ir.Node) -> None:
    result = node.outputs[0]
    name, shape, dtype = result.name, result.shape, result.dtype
    keep = node.attributes.get("keepdims")
    pool = ir.node("GlobalAveragePool", inputs=[node.inputs[0]])
    last = pool
    nodes = [pool]
    if keep is not None and keep.as_int() == 0:
        last = ir.node("Flatten", inputs=[pool.outputs[0]], attributes={"axis": 1})
        nodes.append(last)
    new = last.outputs[0]
    new.shape = shape
    if dtype is not None:
        new.dtype = pool.outputs[0].dtype = dtype
    model.graph.insert_after(node, nodes)
    ir.convenience.replace_all_uses_with(result, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    new.name = name
