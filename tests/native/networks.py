"""Networks for the compiler's tests: a builder of ONNX graphs, in FP32 and as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 22  # before it, shape inference gives pools that round up a window too many
Shape = tuple[int, ...]


class Net:
    """An ONNX graph that grows operator by operator. Tensors are names; `shapes` are those of a sample.

    `points` are the tensors at which a quantized network has uint8; `point` makes such a tensor.
    """

    def __init__(self, *shapes: Shape, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, Shape] = {f"x{at}": shape for at, shape in enumerate(shapes)}
        self.inputs = tuple(self.shapes)
        self.points: list[str] = list(self.inputs)
        self.same: dict[str, str] = {}  # points that have the scale of another
        self.limits: dict[str, tuple[float, float]] = {}  # of points whose ranges are not those of samples
        self.outputs: list[str] = []

    def __repr__(self) -> str:
        """What a test that fails shows."""
        lines = [f"{name}: {self.shapes[name]}" for name in self.inputs]
        for node in self.nodes:
            attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            (output,) = node.output
            point = (
                " point" + (f" as {self.same[output]}" if output in self.same else "") if output in self.points else ""
            )
            lines.append(
                f"{output} = {node.op_type}({', '.join(node.input)}) {attributes}: {self.shapes[output]}{point}"
            )
        return "\n".join([*lines, f"outputs: {', '.join(self.outputs)}"])

    # Tensors and constants.

    def constant(self, values: Any, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def node(self, operator: str, inputs: Sequence[str], shape: Shape, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{operator}_{output}", **attributes))
        self.shapes[output] = shape
        return output

    def point(self, tensor: str, same: str | None = None) -> str:
        """Make a tensor a point, with the scale of the point `same` if there is one."""
        if tensor not in self.points:
            self.points.append(tensor)
            if same in self.points:
                self.same[tensor] = self.same.get(same, same)
        return tensor

    def weights(self, shape: Shape, density: float = 1.0, uneven: bool = False) -> Array:
        """Weights of which about so many are not zero; `uneven` puts most of those into a few outputs."""
        kept = np.full(shape[0], density)
        if uneven:
            kept = np.clip(density * self.random.exponential(1.0, shape[0]) ** 2, 0, 1)
        mask = self.random.random(shape) < kept.reshape(-1, *[1] * (len(shape) - 1))
        spread = 1 / np.sqrt(max(np.prod(shape[1:]) * density, 1.0))
        return (self.random.normal(0, spread, shape) * mask).astype(np.float32)

    # Operators.

    def conv(
        self, x: str, outputs: int, kernel: int | Sequence[int] = 3, *, strides: Sequence[int] | int = 1,
        pads: Sequence[int] | int | None = None, dilations: Sequence[int] | int = 1, groups: int = 1, bias: bool = True,
        density: float = 1.0, uneven: bool = False, weights: Array | None = None,
    ) -> str:  # fmt: skip
        channels, *sizes = self.shapes[x]
        rank = len(sizes)
        kernel, strides, dilations = (_times(value, rank) for value in (kernel, strides, dilations))
        pads = [(k - 1) * d // 2 for k, d in zip(kernel, dilations, strict=True)] * 2 if pads is None else pads
        pads = _times(pads, 2 * rank)
        if weights is None:
            weights = self.weights((outputs, channels // groups, *kernel), density, uneven)
        reads = [x, self.constant(weights, f"w{len(self.constants)}")]
        if bias:
            reads.append(self.constant(self.random.normal(0, 0.3, outputs).astype(np.float32)))
        out = _spatial(sizes, kernel, strides, pads, dilations)
        return self.node(
            "Conv", reads, (outputs, *out), kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations,
            group=groups,
        )  # fmt: skip

    def gemm(self, x: str, outputs: int, density: float = 1.0, bias: bool = True, transposed: bool = True) -> str:
        weights = self.weights((outputs, *self.shapes[x]), density)
        reads = [x, self.constant(weights if transposed else weights.T, f"w{len(self.constants)}")]
        if bias:
            reads.append(self.constant(self.random.normal(0, 0.3, outputs).astype(np.float32)))
        return self.node("Gemm", reads, (outputs,), transB=int(transposed))

    def batch_norm(self, x: str) -> str:
        channels = self.shapes[x][0]
        values = (
            self.random.uniform(0.5, 1.5, channels), self.random.normal(0, 0.3, channels),
            self.random.normal(0, 0.3, channels), self.random.uniform(0.5, 1.5, channels),
        )  # fmt: skip
        constants = [self.constant(value.astype(np.float32)) for value in values]
        return self.node("BatchNormalization", [x, *constants], self.shapes[x], epsilon=1e-3)

    def function(self, x: str, operator: str, **attributes: Any) -> str:
        return self.node(operator, [x], self.shapes[x], **attributes)

    def clip(self, x: str, low: float, high: float) -> str:
        limits = [self.constant(np.float32(limit)) for limit in (low, high)]
        return self.node("Clip", [x, *limits], self.shapes[x])

    def binary(self, operator: str, a: str, b: str) -> str:
        shape = max((self.shapes.get(name, ()) for name in (a, b)), key=np.prod)
        return self.node(operator, [a, b], shape)

    def per_channel(self, operator: str, x: str) -> str:
        channels, *sizes = self.shapes[x]
        values = self.random.uniform(0.5, 1.5, (channels, *[1] * len(sizes))).astype(np.float32)
        return self.node(operator, [x, self.constant(values)], self.shapes[x])

    def concat(self, *tensors: str) -> str:
        channels = sum(self.shapes[name][0] for name in tensors)
        return self.node("Concat", tensors, (channels, *self.shapes[tensors[0]][1:]), axis=1)

    def pool(
        self, x: str, kind: str, kernel: int | Sequence[int], strides: int | Sequence[int] = 1,
        pads: int | Sequence[int] = 0, ceil_mode: int = 0, **attributes: Any,
    ) -> str:  # fmt: skip
        channels, *sizes = self.shapes[x]
        rank = len(sizes)
        kernel, strides, pads = _times(kernel, rank), _times(strides, rank), _times(pads, 2 * rank)
        out = _spatial(sizes, kernel, strides, pads, [1] * rank, ceil_mode)
        return self.node(
            kind, [x], (channels, *out), kernel_shape=kernel, strides=strides, pads=pads, ceil_mode=ceil_mode,
            **attributes,
        )  # fmt: skip

    def global_pool(self, x: str, kind: str = "GlobalAveragePool") -> str:
        channels, *sizes = self.shapes[x]
        return self.node(kind, [x], (channels, *[1] * len(sizes)))

    def flatten(self, x: str) -> str:
        return self.node("Flatten", [x], (int(np.prod(self.shapes[x])),))

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.constant(np.array([0, *shape], np.int64))], shape)

    def pad(self, x: str, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> str:
        channels, *sizes = self.shapes[x]
        pads = self.constant(np.array([0, 0, *before, 0, 0, *after], np.int64))
        shape = (channels, *(a + size + b for a, size, b in zip(before, sizes, after, strict=True)))
        return self.node("Pad", [x, pads, self.constant(np.float32(value))], shape)

    def squeeze_excite(self, x: str, gate: str = "Sigmoid") -> str:
        """Each value is a point: pool, convolution and activation, convolution and gate, product."""
        channels = self.shapes[x][0]
        squeezed = self.point(self.global_pool(x))
        inner = self.point(self.function(self.conv(squeezed, max(channels // 2, 1), 1), "Relu"))
        outer = self.point(self.conv(inner, channels, 1))
        return self.binary("Mul", x, self.point(self.function(outer, gate)))

    # The whole.

    def model(self, batch: int | str = "batch") -> onnx.ModelProto:
        """The network in FP32."""
        return self._model(self.nodes, self.constants, batch)

    def _model(self, nodes: Sequence[onnx.NodeProto], constants: dict[str, Array], batch: int | str) -> onnx.ModelProto:
        def ports(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *self.shapes[name]]) for name in names
            ]

        graph = helper.make_graph(
            nodes, "net", ports(self.inputs), ports(self.outputs),
            [numpy_helper.from_array(values, name) for name, values in constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", OPSET)])

    def samples(self, batch: int = 1, seed: int = 1) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        return {name: random.normal(0, 1, (batch, *self.shapes[name])).astype(np.float32) for name in self.inputs}

    def quantized(self, batch: int | str = "batch", bits: int = 8, seed: int = 5) -> onnx.ModelProto:
        """The network with uint8 at its points, with ranges as some samples have them, and INT8 weights.

        Outputs stay FP32. Weights have `bits`: with 8, vpmaddubsw can overflow.
        """
        ranges = self.ranges(seed)
        constants, nodes = dict(self.constants), []
        renamed: dict[str, str] = {}

        def requantize(name: str) -> None:
            low, high = ranges[name]
            scale = np.float32(max(high - low, 1e-3) / 255)
            zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
            constants[f"{name}_scale"], constants[f"{name}_zero"] = scale, zero
            parameters = [f"{name}_scale", f"{name}_zero"]
            nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_u8"], f"{name}_q"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_u8", *parameters], [f"{name}_f"], f"{name}_d"))
            renamed[name] = f"{name}_f"

        for name in self.inputs:
            requantize(name)
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(renamed.get(name, name) for name in node.input)
            if node.op_type in ("Conv", "Gemm"):
                weights = constants.pop(node.input[1])
                axis = 1 if node.op_type == "Gemm" and not helper.get_node_attr_value(node, "transB") else 0
                levels, scales = _symmetric(weights, axis, 2 ** (bits - 1) - 1)
                name = node.input[1]
                constants[f"{name}_i8"], constants[f"{name}_scale"] = levels, scales
                constants[f"{name}_zero"] = np.zeros(scales.shape, np.int8)
                parameters = [f"{name}_i8", f"{name}_scale", f"{name}_zero"]
                nodes.append(helper.make_node("DequantizeLinear", parameters, [f"{name}_f"], f"{name}_d", axis=axis))
                copy.input[1] = f"{name}_f"
            nodes.append(copy)
            if node.output[0] in self.points and node.output[0] not in self.outputs:
                requantize(node.output[0])
        return self._model(nodes, constants, batch)

    def ranges(self, seed: int) -> dict[str, tuple[float, float]]:
        """The least and largest value at each point, with 0 between them."""
        model = self.model()
        made = [name for name in self.points if name not in self.inputs]
        del model.graph.output[:]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
        samples = self.samples(4, seed)
        values = dict(samples)
        if made:
            values |= dict(zip(made, run(model, samples), strict=True))
        ranges = {name: (min(float(array.min()), 0.0), max(float(array.max()), 0.0)) for name, array in values.items()}
        ranges |= self.limits
        for name, head in self.same.items():
            ranges[head] = min(ranges[head][0], ranges[name][0]), max(ranges[head][1], ranges[name][1])
        return {name: ranges[self.same.get(name, name)] for name in self.points}


def run(model: onnx.ModelProto, inputs: dict[str, Array], optimized: bool = False) -> list[Array]:
    """The outputs of ONNX Runtime, which computes QuantizeLinear networks as they are written unless `optimized`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    computed: list[Array] = session.run(None, inputs)
    return computed


def parity(output: Array, reference: Array) -> float:
    """The smallest tolerance t with abs(output - reference) <= t * (1 + abs(reference))."""
    return float(np.max(np.abs(output - reference) / (1 + np.abs(reference)), initial=0.0))


def _symmetric(weights: Array, axis: int, most: int) -> tuple[Array, Array]:
    others = tuple(at for at in range(weights.ndim) if at != axis)
    largest = np.abs(weights).max(axis=others)
    scales = np.where(largest > 0, largest / most, 1.0).astype(np.float32)
    along = scales.reshape([-1 if at == axis else 1 for at in range(weights.ndim)])
    return np.clip(np.rint(weights / along), -most, most).astype(np.int8), scales


def _times(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _spatial(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil_mode: int = 0,
) -> tuple[int, ...]:  # fmt: skip
    out = []
    for at, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        total = size + pads[at] + pads[at + len(sizes)] - (k - 1) * d - 1
        count = -(-total // s) if ceil_mode else total // s
        if ceil_mode and count * s >= size + pads[at]:  # a window has to begin within the tensor or its padding
            count -= 1
        out.append(count + 1)
    return tuple(out)
