"""Stage 1: from an ONNX file to a graph whose shapes are all known and whose constants are all computed.

A library computes one sample at a time, so that it takes any batch size. The first dimension of every input is taken
for the batch, set to 1 here, and left out of the shapes of the stages that follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ..errors import GraphError

_ROUNDS = 8  # of inferring shapes and computing constants of them; a network's head needs two
_MOST_COMPUTED = 2**33  # bytes of all computed constants: several times what the largest networks have in weights
_SIZES = {"kernel_shape": 1, "strides": 1, "dilations": 1, "group": 1, "pads": -(2**31)}  # attributes, and their least
_LARGEST = 2**31
_SMALL = 64  # values of a constant that a shape may depend on


_QUANTIZING_OPSET = 21  # onnx evaluates no older QuantizeLinear and DequantizeLinear; those mean the same


@dataclass(frozen=True)
class Node:
    """An operator of the graph: `inputs` and `outputs` are names of values, "" where an input is left out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} ({self.name})"


@dataclass(frozen=True)
class Integers:
    """A constant as it is stored in INT8, with what dequantizes it."""

    array: NDArray[np.int8]
    scales: NDArray[np.float32]  # (), or one for each index along `axis`
    axis: int


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution. A shape has its batch dimension, of size 1."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, NDArray[Any]]
    integers: dict[str, Integers]  # of constants that were dequantized, by the name of the dequantized value
    shapes: dict[str, tuple[int, ...]]
    opset: int


def read(path: Path) -> Graph:
    """Read an ONNX file.

    Raises:
        GraphError: it can't be read, has a dimension beside the batch that isn't fixed, an input that isn't FP32,
            an operator of another domain than ONNX's own, or weights that aren't finite.
    """
    model = _load(path)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not opset >= 11:
        raise GraphError(f"{path}: opset {opset} is older than 11.", "Convert it: onnx.version_converter.")
    if model.graph.sparse_initializer or model.functions:
        raise GraphError(f"{path} has sparse tensors or functions of its own.", "Export it without them.")
    constants = {tensor.name: _array(tensor, path) for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    for value in (*inputs, *model.graph.output):
        _check_type(value)
    _check_batch(model, inputs, path)
    for value in inputs:
        _fix_batch(value)
    integers: dict[str, Integers] = {}
    budget = _Budget(_MOST_COMPUTED)
    nodes = [_node(proto, index) for index, proto in enumerate(model.graph.node)]
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(_ROUNDS):
        shapes = _shapes(model, path)
        remaining = list(_compute(nodes, model, constants, integers, shapes, opset, budget))
        done = len(remaining) == len(nodes)
        nodes = remaining
        if done:
            break
        _replace_computed(model, constants)
    for name, array in constants.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise GraphError(f"{path}: the constant {name} has values that are not finite.", "Train or export it anew.")
    return Graph(
        tuple(nodes),
        tuple(value.name for value in inputs),
        tuple(value.name for value in model.graph.output),
        constants,
        integers,
        shapes,
        opset,
    )


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(path)
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror or error}.", "Name an ONNX file.") from error
    except Exception as error:  # protobuf and the checker raise several kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GraphError(f"{path} is not a valid ONNX file: {reason}", "Export it anew.") from error
    names = [value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)]
    names += [name for node in model.graph.node for name in (node.name, *node.input, *node.output)]
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes where there is no text
        raise GraphError(f"{path} is not a valid ONNX file: it has names that are no UTF-8.", "Export it anew.")
    return model


def _array(tensor: onnx.TensorProto, path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor, str(path.parent))
    except Exception as error:  # data that is not there, or not as long as the shape says
        raise GraphError(f"{path}: the constant {tensor.name} can't be read: {error}", "Export it anew.") from error
    with np.errstate(over="ignore"):  # what becomes infinite is refused with what is
        return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array


def _check_type(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind == "tensor_type":
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return
        kind = type_name(value.type.tensor_type.elem_type)
    raise GraphError(f"{value.name} is {kind}; the target native takes and gives FP32.", "Export it with FP32.")


def type_name(kind: int) -> str:
    """The name of a type of ONNX, as FLOAT16."""
    names: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(kind, f"of type {kind}")


def _check_batch(model: onnx.ModelProto, inputs: list[onnx.ValueInfoProto], path: Path) -> None:
    """Refuse what mixes the samples of a batch, as far as shapes tell: a library computes them one by one."""
    sizes = {dimension.dim_value for value in inputs for dimension in value.type.tensor_type.shape.dim[:1]}
    if sizes == {1}:
        return
    (batch,) = sizes if len(sizes) == 1 and sizes != {0} else (2,)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in {taken.name for taken in inputs} and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    _forget_shapes(copy)
    shapes = _infer(copy, path)
    for value in model.graph.output:
        shape = shapes.get(value.name)
        if shape is not None and shape[:1] != (batch,):
            raise GraphError(
                f"For {batch} samples, the output {value.name} has shape {shape}: it mixes them.",
                "The target native computes a sample at a time: keep the batch as the first dimension.",
            )


def _fix_batch(value: onnx.ValueInfoProto) -> None:
    """Set the batch to 1; refuse what is not a batch of samples of a fixed shape."""
    dimensions = value.type.tensor_type.shape.dim
    if len(dimensions) < 2:
        rank = "1 dimension" if dimensions else "no dimensions"
        raise GraphError(
            f"The input {value.name} has {rank}: it is no batch of samples.",
            "Export it with the batch as the first dimension.",
        )
    for axis, dimension in enumerate(dimensions):
        if axis and dimension.dim_value < 1:
            raise GraphError(
                f"The input {value.name} has a dynamic shape: dimension {axis} ({dimension.dim_param or '?'}) is open.",
                "Only the batch may be dynamic: export it with the size that it will run with.",
            )
    dimensions[0].dim_value = 1


def _node(proto: onnx.NodeProto, index: int) -> Node:
    name = proto.name or f"{proto.op_type}_{index}"
    if proto.domain not in ("", "ai.onnx"):
        raise GraphError(
            f"The operator {proto.domain}.{proto.op_type} ({name}) is not one of ONNX's own.",
            "The target native compiles standard operators of convolutional networks.",
        )
    if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in proto.attribute):
        raise GraphError(
            f"The operator {proto.op_type} ({name}) decides by its inputs what is computed.",
            "Export the network without control flow, in evaluation mode.",
        )
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    for key, least in _SIZES.items():
        values = attributes.get(key, [])
        if any(not least <= value <= _LARGEST for value in (values if isinstance(values, list) else [values])):
            raise GraphError(f"{proto.op_type} ({name}) has {key} {values}.", "Export it anew.")
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes)


def _shapes(model: onnx.ModelProto, path: Path) -> dict[str, tuple[int, ...]]:
    _forget_shapes(model)
    shapes = _infer(model, path)
    while _correct_pools(model, shapes):
        shapes = _infer(model, path)
    return shapes


def _forget_shapes(model: onnx.ModelProto) -> None:
    """What is stored there may be true of another batch."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _infer(model: onnx.ModelProto, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise GraphError(
            f"{path}: shapes don't fit together: {reason}", "Export it anew, with a batch of 1."
        ) from error
    return _shapes_of(inferred)


def _shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {}
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        sizes = tuple(dimension.dim_value for dimension in tensor.shape.dim)
        if tensor.HasField("shape") and all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            shapes[value.name] = sizes
    return shapes


def _correct_pools(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Correct pools that round up and have one window too many; whether there were any.

    A window that begins behind the tensor is left out. Before opset 22, shape inference counts it all the same. So the
    copy of the graph that shapes are inferred from gets the padding that leads to the right number without rounding up.
    """
    changed: set[str] = set()  # values whose shapes are not those of `shapes` any more
    corrected = False
    for proto in model.graph.node:
        if changed.intersection(proto.input):
            changed.update(proto.output)
            continue
        if proto.op_type not in ("MaxPool", "AveragePool") or proto.input[0] not in shapes:
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
        kernel = attributes["kernel_shape"]
        if not attributes.get("ceil_mode", 0) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        rank = len(kernel)
        pads = list(attributes.get("pads", [0] * 2 * rank))
        strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
        if (len(pads), len(strides), len(dilations), len(shapes[proto.input[0]])) != (2 * rank, rank, rank, rank + 2):
            continue  # it is refused later
        excess = False
        for axis, size in enumerate(shapes[proto.input[0]][2:]):
            span = (kernel[axis] - 1) * dilations[axis] + 1
            before, after, stride = pads[axis], pads[axis + rank], strides[axis]
            last = -(-(size + before + after - span) // stride)
            while last > 0 and last * stride >= size + before:
                last, excess = last - 1, True
            pads[axis + rank] = max(last * stride + span - size - before, 0)
        if excess:
            _set(proto, ceil_mode=0, pads=pads)
            changed.update(proto.output)
            corrected = True
    return corrected


def _set(proto: onnx.NodeProto, **attributes: Any) -> None:
    kept = [attribute for attribute in proto.attribute if attribute.name not in attributes]
    del proto.attribute[:]
    proto.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])


def _compute(
    nodes: list[Node],
    model: onnx.ModelProto,
    constants: dict[str, NDArray[Any]],
    integers: dict[str, Integers],
    shapes: dict[str, tuple[int, ...]],
    opset: int,
    budget: _Budget,
) -> Iterator[Node]:
    """Compute into `constants` what is constant; yield the nodes that are left."""
    protos = {proto.output[0]: proto for proto in model.graph.node if proto.output}
    for node in nodes:
        if node.operator == "Shape" and node.inputs[0] in shapes and node.inputs[0] not in constants:
            first = node.attributes.get("start", 0)
            constants[node.outputs[0]] = np.array(shapes[node.inputs[0]][first : node.attributes.get("end")], np.int64)
            continue
        if not all(name in constants for name in node.inputs if name) or not node.outputs:
            yield node
            continue
        values = {name: constants[name] for name in node.inputs if name}
        single = _single(protos[node.outputs[0]], values, opset)
        if not budget.take(_size(node, single, values, shapes)):
            yield node
            continue
        _note_integers(node, constants, integers)
        constants.update(zip(node.outputs, _evaluate(single, values), strict=True))


@dataclass
class _Budget:
    """Bytes that constants may still take: a hostile file may ask for anything."""

    left: int

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _single(proto: onnx.NodeProto, values: dict[str, NDArray[Any]], opset: int) -> onnx.ModelProto:
    """A model of one operator that reads constants."""
    graph = helper.make_graph(
        [proto],
        "constant",
        [helper.make_tensor_value_info(name, _type(array), array.shape) for name, array in values.items()],
        [helper.make_empty_tensor_value_info(name) for name in proto.output],
    )
    if proto.op_type in ("QuantizeLinear", "DequantizeLinear"):
        opset = max(opset, _QUANTIZING_OPSET)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _size(node: Node, single: onnx.ModelProto, values: dict[str, NDArray[Any]], shapes: dict[str, Any]) -> int:
    """Bytes of a node's outputs, about. Where its inputs' values decide, they are inferred from those."""
    if not all(name in shapes for name in node.outputs if name):
        copy = onnx.ModelProto()
        copy.CopyFrom(single)
        small = {name: array for name, array in values.items() if array.size <= _SMALL}
        copy.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in small.items())
        shapes = _shapes_of(shape_inference.infer_shapes(copy, data_prop=True))
    return max((8 * math.prod(shapes.get(name, (1,))) for name in node.outputs), default=0)


def _note_integers(node: Node, constants: dict[str, NDArray[Any]], integers: dict[str, Integers]) -> None:
    """Keep INT8 weights beside their dequantized values; those with another zero point than 0 are FP32 to us."""
    if node.operator != "DequantizeLinear" or constants[node.inputs[0]].dtype != np.int8:
        return
    if len(node.inputs) > 2 and node.inputs[2] and constants[node.inputs[2]].any():
        return
    array, scales = constants[node.inputs[0]], constants[node.inputs[1]]
    axis = node.attributes.get("axis", 1) % max(array.ndim, 1)
    integers[node.outputs[0]] = Integers(array, scales, axis)


def _evaluate(single: onnx.ModelProto, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return list(ReferenceEvaluator(single).run(None, values))
    except Exception as error:
        (proto,) = single.graph.node
        reason = f"{type(error).__name__}: {error}"
        raise GraphError(
            f"The constant {proto.output[0]} can't be computed: {proto.op_type} raised {reason}",
            "Fold constants in the exporter, and export it anew.",
        ) from error


def _type(array: NDArray[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _replace_computed(model: onnx.ModelProto, constants: dict[str, NDArray[Any]]) -> None:
    """Put computed constants into the model, so that shapes that depend on them can be inferred."""
    present = {tensor.name for tensor in model.graph.initializer}
    for proto in list(model.graph.node):
        if proto.output and all(name in constants for name in proto.output):
            model.graph.node.remove(proto)
    for name, array in constants.items():
        if name not in present:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
