"""Constants of a graph: what is stored, and what is computed of that alone.

Values are computed up to scale where they are quantized, since what is asked of them is where they are zero: of
DequantizeLinear the integers less their zero point, so that a stored value is zero exactly where it equals that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..errors import GraphError

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


class NotComputable(Exception):
    """A constant that is computed of others by something that can't be run here; says what."""


def is_constant(value: ir.Value) -> bool:
    """Whether nothing that a value comes of is an input of the graph."""
    open_, seen = [value], set()
    while open_:
        value = open_.pop()
        if value in seen or value.const_value is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.op_type in _RANDOM:
            return False
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            return False  # a subgraph may read whatever is around it
        open_ += [read for read in node.inputs if read is not None]
    return True


def stored(value: ir.Value) -> ir.Value:
    """The initializer, or output of a Constant node, that a constant comes of: the first one with most dimensions."""
    open_, leaves, seen = [value], [], set()
    while open_:
        value = open_.pop(0)
        node = value.producer()
        reads = [read for read in node.inputs if read is not None] if node is not None else []
        if value.const_value is not None or not reads:
            leaves.append(value)
        open_ += [read for read in reads if value.const_value is None and read not in seen]
        seen.update(reads)
    return max(leaves, key=rank)


def rank(value: ir.Value) -> int:
    """The number of dimensions, as far as the graph tells; that of what is stored where it doesn't."""
    if value.const_value is not None:
        return len(value.const_value.shape)
    node = value.producer()
    if node is not None and node.op_type == "Constant":
        return _attribute_rank(node)
    if value.shape is not None:
        return len(value.shape)
    leaf = stored(value)
    return rank(leaf) if leaf is not value else 0


def evaluate(value: ir.Value, opsets: Mapping[str, int]) -> NDArray[Any]:
    """The array of a constant, up to scale where it is dequantized.

    Raises:
        NotComputable: it passes an operator that can't be run here.
        GraphError: the file that holds its data is missing or too short.
    """
    if value.const_value is not None:
        return _array(value)
    node = value.producer()
    assert node is not None  # a constant without a producer is stored
    inputs = [evaluate(read, opsets) if read is not None else None for read in node.inputs]
    if node.op_type == "DequantizeLinear":
        return _dequantize(node, inputs)
    if node.domain not in ("", "ai.onnx"):
        raise NotComputable(f"it is behind {node.op_type} of {node.domain}")
    return _run(node, inputs, value, opsets)


def shift(array: NDArray[Any], zero: NDArray[Any], axis: int, block: int = 0) -> NDArray[Any]:
    """`array` less its zero point, of any shape or one for each index (each `block` of them) of an axis."""
    if array.dtype.kind in "iub" or array.dtype.itemsize == 1:  # float8 has no differences of its own
        kind = np.float32 if array.dtype.name.startswith("float") else np.int64
        array, zero = array.astype(kind), zero.astype(kind)
    if block:
        zero = np.repeat(zero, block, axis)[tuple(slice(length) for length in array.shape)]
    elif zero.size == 1:
        zero = zero.reshape(())
    elif zero.ndim == 1:
        zero = zero.reshape([-1 if at == axis % array.ndim else 1 for at in range(array.ndim)])
    shifted: NDArray[Any] = array - zero
    return shifted


def densify(graph: onnx.GraphProto) -> None:
    """Make the sparse initializers of a graph, and its sparse Constant nodes, dense ones. Raises `ValueError`."""
    graph.initializer.extend(_dense(tensor) for tensor in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                densify(attribute.g)
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                attribute.CopyFrom(helper.make_attribute("value", _dense(attribute.sparse_tensor)))


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Indices are positions in the flattened tensor, (nonzeros,), or coordinates, (nonzeros, dimensions)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    try:
        return value.const_value.numpy()
    except (OSError, ValueError) as error:
        raise GraphError(
            f"The data of the weight {value.name} can't be read: {str(error).splitlines()[0]}",
            "Keep the file of external data beside the .onnx file.",
        ) from error


def _dequantize(node: ir.Node, inputs: list[NDArray[Any] | None]) -> NDArray[Any]:
    array, _, zero = (*inputs, None)[:3]
    assert array is not None
    axis, block = (
        node.attributes[name].as_int() if name in node.attributes else default
        for name, default in (("axis", 1), ("block_size", 0))
    )
    return shift(
        array, zero if zero is not None else np.zeros(1, dtype=array.dtype), axis, block if zero is not None else 0
    )


def _run(node: ir.Node, inputs: list[NDArray[Any] | None], value: ir.Value, opsets: Mapping[str, int]) -> NDArray[Any]:
    """Run a node by onnx's reference."""
    names = [f"i{at}" if array is not None else "" for at, array in enumerate(inputs)]
    proto = ir.to_proto(node)
    proto.ClearField("input")
    proto.input.extend(names)
    arrays = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        graph = helper.make_graph([proto], "constant", given, [onnx.ValueInfoProto(name=value.name)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opsets.get("", 1))])
        (result,) = ReferenceEvaluator(model).run(None, arrays)
    except Exception as error:  # of the reference, each operator has its own
        raise NotComputable(f"it is behind {node.op_type}, which can't be computed here") from error
    return np.asarray(result)


def _attribute_rank(node: ir.Node) -> int:
    tensor = node.attributes.get("value")
    return len(tensor.as_tensor().shape) if tensor is not None else 1
