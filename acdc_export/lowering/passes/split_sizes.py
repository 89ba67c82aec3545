"""Give a Split into equal parts its sizes as an input: DeepSparse knows it in no other form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import static_shape


def run(model: ir.Model, *, batch_size: int) -> None:
    """Give sizes to every Split that names none and splits an axis of known length."""
    for node in model.graph:
        if node.op_type != "Split" or (len(node.inputs) > 1 and node.inputs[1] is not None):
            continue
        shape = static_shape(node.inputs[0])
        if shape is None:
            continue
        length, parts = shape[node.attributes.get_int("axis", 0)], len(node.outputs)
        part = -(-length // parts)  # the last one may be smaller
        sizes = np.array([*[part] * (parts - 1), length - part * (parts - 1)], dtype=np.int64)
        value = ir.Value(
            name=f"{node.outputs[0].name}.sizes",
            const_value=ir.tensor(sizes),
            shape=ir.Shape([parts]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        model.graph.register_initializer(value)
        node.resize_inputs(2)
        node.replace_input_with(1, value)
        node.attributes.pop("num_outputs", None)
