"""Stage 2: from operators to layers. What can be computed in one loop over memory becomes one layer.

The way is backwards, from what is asked for: to make a value, look at what made it, take what belongs into the same
loop, and ask for the inputs of that. So an operator that nobody needs is never looked at.

A QuantizeLinear asks for uint8. Between it and the DequantizeLinear nodes before it stands a piece of FP32 graph, which
becomes an integer layer where `layers.py` has one for it. Otherwise it is computed in FP32, between conversions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ..errors import GraphError
from .graph import Graph, Node, type_name
from .layers import (
    INFINITY,
    Affine,
    AnyLayer,
    Binary,
    Concat,
    Dequantize,
    Function,
    Network,
    Pad,
    Pool,
    Product,
    Quantize,
    Quantized,
    Reshape,
    Softmax,
    Table,
    Tensor,
    Window,
)

_SAME = {"Identity", "Dropout", "Cast"}  # casts of FP32 are to FP32: shapes are computed before this stage
_MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_FUNCTIONS: dict[str, tuple[tuple[str, float], ...]] = {  # with attributes and their defaults
    "LeakyRelu": (("alpha", 0.01),),
    "Sigmoid": (),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": (),
    "Gelu": (),
    "Tanh": (),
    "Erf": (),
    "Elu": (("alpha", 1.0),),
    "Exp": (),
    "Sqrt": (),
    "Softplus": (),
    "Abs": (),
    "Neg": (),
}
_ELEMENTWISE = {*_FUNCTIONS, *_BINARY, "Relu", "Clip"}
_MOST_BIAS = 2**29  # in steps of a product, that of the input's zero point not included, which is a sum of products
_MOST_PRODUCTS = 2**29  # so all sums fit into int32
_BIAS_ALONE = 2**23  # steps of a bias where there are no products: so many are exact in FP32
OPERATORS = sorted(
    {*_SAME, *_MOVES, *_PRODUCTS, *_ELEMENTWISE}
    | {"BatchNormalization", "Concat", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool", "ReduceMean"}
    | {"Pad", "Softmax", "LogSoftmax", "QuantizeLinear", "DequantizeLinear"}
)
"""What the compiler knows, by name."""


def fuse(graph: Graph) -> Network:
    """Return the layers of a graph.

    Raises:
        GraphError: an operator that isn't known, or one that is used in a way that isn't; names operator and node.
    """
    with np.errstate(all="ignore"):  # what isn't finite is told at the end
        return _Fuser(graph).run()


def _check_finite(layer: AnyLayer) -> None:
    """Constants are finite, but what was computed of them may not be: divisions by zero, negative variances."""
    for name, value in vars(layer).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise GraphError(
                f"{layer.operator} ({layer.name}) has {name} that are not finite.", "Train or export it anew."
            )


class _NotThis(Exception):
    """A piece of graph is not what it was tried as."""


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {output: node for node in graph.nodes for output in node.outputs}
        self.positions = {output: at for at, node in enumerate(graph.nodes) for output in node.outputs}
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses.update(graph.outputs)
        self.tensors: dict[str, Tensor] = {}
        self.layers: dict[str, AnyLayer] = {}
        self.extra: dict[str, list[AnyLayer]] = {}  # in front of a layer, by its output

    def run(self) -> Network:
        for name in self.graph.inputs:
            self.tensors[name] = self.tensor(name)
        outputs = []
        pending = list(self.graph.outputs)
        for name in self.graph.outputs:
            if name in self.graph.constants or name in self.graph.inputs:
                raise GraphError(f"The output {name} doesn't depend on an operator.", "Leave it out.")
            outputs.append(name)
        while pending:
            name = pending.pop()
            if name in self.layers or name in self.graph.inputs:
                continue
            layer = self.make(name)
            self.layers[name] = layer
            own = self.extra.get(name, [])
            made = {extra.output for extra in own}
            pending += [read for step in (*own, layer) for read in step.inputs if read not in made]
        ordered = sorted(self.layers, key=lambda name: self.positions[name])
        layers = [step for name in ordered for step in (*self.extra.get(name, []), self.layers[name])]
        for layer in layers:
            _check_finite(layer)
        return Network(tuple(layers), self.tensors, self.graph.inputs, tuple(outputs))

    # Values.

    def tensor(self, name: str, quantized: Quantized | None = None, like: str | None = None) -> Tensor:
        """The tensor of a value; its shape is that of the value `like`."""
        shape = self.graph.shapes.get(like or name)
        if shape is None or any(size < 1 for size in shape):
            where = self.producers.get(like or name, "the caller")
            raise GraphError(f"The shape of {like or name}, from {where}, is not known.", "Export it with fixed sizes.")
        if not 2 <= len(shape) <= 4 or shape[0] != 1:
            node = self.producers.get(like or name)
            raise GraphError(
                f"{node or 'The caller'} gives {like or name} of shape {shape}: not (batch, channels), "
                "(batch, channels, length) or (batch, channels, height, width).",
                "The target native compiles convolutional networks, a sample at a time.",
            )
        channels, *rest = shape[1:]
        height, width = {0: (1, 1), 1: (1, *rest), 2: tuple(rest)}[len(rest)]
        return Tensor(name, (channels, height, width), quantized, len(shape) - 1)

    def resolve(self, name: str) -> str:
        """The value that a name stands for: what Identity, Dropout and casts read."""
        while (node := self.producers.get(name)) is not None and node.operator in _SAME:
            if node.operator == "Dropout":
                self.check_dropout(node, name)
            if node.operator == "Cast" and node.attributes["to"] != TensorProto.FLOAT:
                kind = type_name(node.attributes["to"])
                raise GraphError(f"{node} casts to {kind}.", "The target native computes in FP32 and INT8.")
            name = node.inputs[0]
        return name

    def check_dropout(self, node: Node, name: str) -> None:
        training = self.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        if training is None or training.any() or name != node.outputs[0]:
            raise GraphError(f"{node} drops values, or gives its mask.", "Export the network in evaluation mode.")

    def read(self, name: str) -> str:
        """The name of an FP32 tensor that a layer reads."""
        name = self.resolve(name)
        if name in self.graph.constants:
            raise GraphError(f"The constant {name} stands where a tensor is expected.", "Fold it in the exporter.")
        return name

    def producer(self, name: str) -> Node | None:
        return self.producers.get(self.resolve(name))

    def constant(self, name: str) -> NDArray[Any] | None:
        return self.graph.constants.get(name)

    def single(self, name: str) -> bool:
        """Whether a value has one use, so that the loop that makes it may keep it to itself."""
        source = self.resolve(name)
        while name != source:
            if self.uses[name] != 1:
                return False
            name = self.producers[name].inputs[0]
        return self.uses[name] == 1

    def dequantized(self, name: str) -> tuple[str, Quantized] | None:
        """What a value dequantizes: the name of the uint8 tensor and its scale; None if it isn't such a value."""
        node = self.producer(name)
        if node is None or node.operator != "DequantizeLinear":
            return None
        return node.inputs[0], self.quantization(node)

    def quantization(self, node: Node) -> Quantized:
        scale = self.constant(node.inputs[1])
        zero = self.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.uint8(0)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype != np.uint8:
            raise GraphError(
                f"{node} isn't uint8 with a single scale and zero point.",
                "Quantize activations for each tensor to uint8, as --precision int8 does.",
            )
        if not 0 < float(scale.reshape(())) < INFINITY:
            raise GraphError(f"{node} has the scale {float(scale.reshape(()))}.", "Quantize the network anew.")
        return Quantized(float(scale.reshape(())), int(zero.reshape(())))

    # Layers.

    def make(self, name: str) -> AnyLayer:
        node = self.producers[name]
        if node.operator == "QuantizeLinear":
            return self.quantized(name, node)
        if node.operator == "DequantizeLinear":
            source, quantized = node.inputs[0], self.quantization(node)
            self.tensors[name] = self.tensor(name)
            self.tensors.setdefault(source, self.tensor(source, quantized))
            return Dequantize(node.name, node.operator, (source,), name)
        self.tensors[name] = self.tensor(name)
        return self.floating(name, name)

    def floating(self, name: str, output: str) -> AnyLayer:
        """The layer that computes the value `name` in FP32, as the tensor `output`."""
        node = self.producers[name]
        if node.operator in _SAME:
            return Function(node.name, "Identity", (self.read(name),), output)
        if (product := self.product(name, output)) is not None:
            return product
        if (affine := self.affine(name, output)) is not None:
            return affine
        if node.operator in _MOVES:
            return Reshape(node.name, node.operator, (self.read(node.inputs[0]),), output)
        if node.operator in _BINARY:
            return self.binary(node, output)
        if node.operator in ("Relu", "Clip"):
            low, high = self.limits(node)
            inner = self.producer(node.inputs[0])
            if inner is not None and inner.operator in _BINARY and self.single(node.inputs[0]):
                try:
                    return self.binary(inner, output, low, high)
                except _NotThis:
                    pass
            return Function(node.name, "Clip", (self.read(node.inputs[0]),), output, (low, high))
        if node.operator in _FUNCTIONS:
            return self.function(node, output)
        if node.operator in ("Softmax", "LogSoftmax"):
            axis = node.attributes.get("axis", -1 if self.graph.opset >= 13 else 1)
            shape = self.graph.shapes[node.inputs[0]]
            if self.tensor(node.inputs[0]).shape[1:] != (1, 1) or axis % len(shape) != 1:
                raise GraphError(f"{node} is not over the channels of (batch, channels).", "Flatten before it.")
            return Softmax(
                node.name, node.operator, (self.read(node.inputs[0]),), output, node.operator == "LogSoftmax"
            )
        if node.operator == "Concat":
            self.check_axis(node)
            return Concat(node.name, node.operator, tuple(map(self.read, node.inputs)), output)
        if node.operator == "Pad":
            pads, value = self.padding(node)
            return Pad(node.name, node.operator, (self.read(node.inputs[0]),), output, pads, value)
        if (pool := self.pool(node, output)) is not None:
            return pool
        raise GraphError(
            f"The operator {node.operator} ({node.name}) is not one that the target native knows.",
            "It knows " + ", ".join(OPERATORS) + ".",
        )

    def function(self, node: Node, output: str) -> AnyLayer:
        operator, names = node.operator, _FUNCTIONS[node.operator]
        if operator == "Gelu" and node.attributes.get("approximate", b"none") != b"none":
            operator = "GeluTanh"
        parameters = tuple(float(node.attributes.get(name, default)) for name, default in names)
        return Function(node.name, operator, (self.read(node.inputs[0]),), output, parameters)

    def limits(self, node: Node) -> tuple[float, float]:
        """Of Relu and Clip."""
        if node.operator == "Relu":
            return 0.0, INFINITY
        limits = [-INFINITY, INFINITY]
        for at in (0, 1):
            if len(node.inputs) > at + 1 and node.inputs[at + 1]:
                value = self.constant(node.inputs[at + 1])
                if value is None or value.size != 1:
                    raise GraphError(f"{node} has a limit that is no constant.", "Export it with constant limits.")
                limits[at] = float(value.reshape(()))
        return min(limits), limits[1]  # where they cross, all values become the upper one

    # Products.

    def product(self, name: str, output: str, onto: Quantized | None = None) -> Product | None:
        """The product that makes a value, with what follows in the same loop; `onto` uint8, or in FP32."""
        low, high, residual = -INFINITY, INFINITY, ""
        node = self.producers[name]
        if node.operator in ("Relu", "Clip") and self.single(node.inputs[0]):
            low, high = self.limits(node)
            name = self.resolve(node.inputs[0])
            if name not in self.producers:
                return None
            node = self.producers[name]
        linear = self.linear(name)
        if linear is None and node.operator == "Add":
            operands = [self.resolve(operand) for operand in node.inputs]
            shapes = [self.graph.shapes.get(operand) for operand in operands]
            if shapes[0] != shapes[1] or operands[0] == operands[1]:
                return None
            choices = [
                (self.positions[operand], candidate, operands[1 - at])
                for at, operand in enumerate(operands)
                if operand in self.producers
                and self.single(node.inputs[at])
                and (candidate := self.linear(operand)) is not None
                and candidate.integer == (onto is not None)
                and (onto is None or self.dequantized(operands[1 - at]) is not None)
            ]
            if not choices:
                return None
            _, linear, residual = max(choices, key=lambda choice: choice[0])
        if linear is None or (onto is not None and not linear.integer):
            return None
        return self.assemble(linear, output, residual, low, high, onto)

    def linear(self, name: str) -> _Linear | None:
        """The convolution or matrix product behind a value, with what is constant for each channel behind it."""
        steps: list[Node] = []
        while True:
            node = self.producer(name)
            if node is None:
                return None
            if node.operator in _PRODUCTS:
                break
            source = self.channelwise(node)
            if source is None or not self.single(source):
                return None
            steps.append(node)
            name = source
        linear = _Linear.of(self, node)
        for step in reversed(steps):
            multipliers, offsets = self.coefficients(step, linear.weights.shape[0])
            linear.follow(multipliers, offsets)
        return linear

    def channelwise(self, node: Node) -> str | None:
        """The input of a node that multiplies or adds constants for each channel; None for other nodes."""
        if node.operator == "BatchNormalization":
            return node.inputs[0]
        if node.operator not in _BINARY or len(self.graph.shapes.get(node.outputs[0], ())) < 2:
            return None
        constants = [self.constant(name) for name in node.inputs]
        if (constants[0] is None) == (constants[1] is None) or (node.operator == "Div" and constants[1] is None):
            return None
        at = 0 if constants[0] is None else 1
        constant = constants[1 - at]
        rank, channels = len(self.graph.shapes[node.outputs[0]]), self.graph.shapes[node.outputs[0]][1]
        assert constant is not None
        shape = (1,) * (rank - constant.ndim) + constant.shape
        if len(shape) != rank or shape not in ((1, channels, *[1] * (rank - 2)), (1,) * rank):
            return None
        if self.graph.shapes.get(node.inputs[at]) != self.graph.shapes[node.outputs[0]]:
            return None
        return node.inputs[at]

    def coefficients(self, node: Node, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Multipliers and offsets, (channels,), of a node that is `channelwise`."""
        if node.operator == "BatchNormalization":
            constants = [self.constant(name) for name in node.inputs[1:5]]
            values = [np.asarray(value, np.float64) for value in constants if value is not None]
            if len(values) < 4 or node.attributes.get("training_mode", 0):
                raise GraphError(f"{node} computes statistics of its batch.", "Export the network in evaluation mode.")
            if any(value.shape != (channels,) for value in values):
                raise GraphError(f"{node} has other statistics than one for each channel.", "Export it anew.")
            scale, bias, mean, variance = values
            multipliers = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
            return multipliers, bias - mean * multipliers
        first = self.constant(node.inputs[0])
        value = np.asarray(self.constant(node.inputs[1]) if first is None else first, np.float64)
        value = np.broadcast_to(value.reshape(-1), channels).copy()
        ones, zeros = np.ones(channels), np.zeros(channels)
        if node.operator == "Add":
            return ones, value
        if node.operator == "Mul":
            return value, zeros
        if node.operator == "Div":
            return 1 / value, zeros
        return (ones, -value) if first is None else (-ones, value)

    def assemble(
        self, linear: _Linear, output: str, residual: str, low: float, high: float, onto: Quantized | None
    ) -> Product:
        node = linear.node
        if not linear.integer:
            weights, bias = linear.folded()
            inputs = [self.read(linear.source)] + ([self.read(residual)] if residual else [])
            return Product(
                node.name, node.operator, tuple(inputs), output, weights, bias, linear.window, linear.groups,
                low, high, residual=1.0 if residual else None,
            )  # fmt: skip
        source, given = self.integer_input(linear.source)
        inputs = [source]
        scale = 1.0 if onto is None else onto.scale
        addend = None
        if residual:
            added = self.dequantized(residual)
            assert added is not None  # else it would be another layer
            inputs.append(self.quantized_tensor(*added))
            addend = _of_16_bits(added[1].scale / scale)
            linear.offsets = linear.offsets - added[1].zero * addend * scale
        integers, steps = linear.integers_and_steps(given.scale)
        bias = np.rint(linear.offsets / steps) - given.zero * integers.reshape(len(integers), -1).sum(1, np.int64)
        levels = (low, high) if onto is None else _levels(low, high, onto)
        return Product(
            node.name, node.operator, tuple(inputs), output, integers, bias.astype(np.int32), linear.window,
            linear.groups, *levels, (steps / scale).astype(np.float32), addend,
        )  # fmt: skip

    def quantized_tensor(self, name: str, quantized: Quantized) -> str:
        self.tensors.setdefault(name, self.tensor(name, quantized))
        return name

    def integer_input(self, name: str) -> tuple[str, Quantized]:
        given = self.dequantized(name)
        if given is None:
            raise _NotThis
        return self.quantized_tensor(*given), given[1]

    # Pools, sums and the like.

    def affine(self, name: str, output: str, onto: Quantized | None = None) -> Affine | None:
        """A batch norm that no convolution stands before, and the like, with a clip behind it."""
        low, high = -INFINITY, INFINITY
        node = self.producers[name]
        if node.operator in ("Relu", "Clip") and self.single(node.inputs[0]):
            inner = self.producer(node.inputs[0])
            if inner is None or self.channelwise(inner) is None:
                return None
            low, high = self.limits(node)
            node = inner
        steps = []
        source = node.outputs[0]
        while (step := self.producer(source)) is not None and (before := self.channelwise(step)) is not None:
            steps.append(step)
            source = before
            if not self.single(before):
                break
        if not steps:
            return None
        channels = self.graph.shapes[node.outputs[0]][1]
        multipliers, offsets = np.ones(channels), np.zeros(channels)
        for step in reversed(steps):
            multiplier, offset = self.coefficients(step, channels)
            multipliers, offsets = multipliers * multiplier, offsets * multiplier + offset
        if onto is None:
            read = self.read(source)
        else:
            read, given = self.integer_input(source)
            offsets = (offsets - multipliers * given.scale * given.zero) / onto.scale
            multipliers = multipliers * given.scale / onto.scale
            low, high = _levels(low, high, onto)
        return Affine(
            node.name, node.operator, (read,), output,
            multipliers.astype(np.float32), offsets.astype(np.float32), low, high,
        )  # fmt: skip

    def binary(
        self, node: Node, output: str, low: float = -INFINITY, high: float = INFINITY, onto: Quantized | None = None
    ) -> AnyLayer:
        kind = _BINARY[node.operator]
        operands = list(node.inputs)
        if any(name in self.graph.constants for name in operands):
            raise GraphError(
                f"{node} has a constant operand that is not one value for each channel.",
                "The target native knows constants of shape (channels, 1, 1) and single values.",
            )
        shapes = [self.tensor("", like=self.resolve(name)).shape for name in operands]
        ranks = [len(self.graph.shapes[self.resolve(name)]) for name in operands]
        if shapes[0] != shapes[1] and kind in ("add", "mul") and np.prod(shapes[0]) < np.prod(shapes[1]):
            operands.reverse()
            shapes.reverse()
        if shapes[1] not in (shapes[0], (shapes[0][0], 1, 1)) or ranks[0] != ranks[1]:
            raise GraphError(
                f"{node} broadcasts {shapes[1]} to {shapes[0]}.",
                "The target native broadcasts one value for each channel, (channels, 1, 1).",
            )
        open_ = (low, high) == (-INFINITY, INFINITY)
        if kind == "mul" and onto is None and open_ and (gated := self.silu(node, operands)) is not None:
            return Function(node.name, "Silu", (gated,), output)
        if onto is None:
            inputs = tuple(self.read(name) for name in operands)
            return Binary(node.name, node.operator, inputs, output, kind, (1.0, 1.0), low, high)  # type: ignore[arg-type]
        if kind == "div":
            raise _NotThis
        read = [self.integer_input(name) for name in operands]
        scales = [given.scale for _, given in read]
        pair = (scales[0] / onto.scale, (-1 if kind == "sub" else 1) * scales[1] / onto.scale)
        if kind == "mul":
            pair = (scales[0] * scales[1] / onto.scale, 0.0)
        multipliers = (float(np.float32(pair[0])), float(np.float32(pair[1])))
        kind = "add" if kind == "sub" else kind
        inputs = tuple(name for name, _ in read)
        return Binary(node.name, node.operator, inputs, output, kind, multipliers, *_levels(low, high, onto))  # type: ignore[arg-type]

    def silu(self, node: Node, operands: Sequence[str]) -> str | None:
        """x, where a product is x * sigmoid(x)."""
        for gate, value in (operands, reversed(operands)):
            inner = self.producer(gate)
            if inner is None or inner.operator != "Sigmoid" or not self.single(gate):
                continue
            if self.resolve(inner.inputs[0]) == self.resolve(value):
                return self.read(value)
        return None

    def check_weights(self, node: Node, source: str, weights: NDArray[Any], groups: int, transposed: bool) -> None:
        """Refuse weights that don't fit the input: shape inference doesn't look at all of it."""
        shape = self.graph.shapes[self.resolve(source)]
        fits = weights.ndim == len(shape) and weights.size > 0 and weights.dtype == np.float32
        if fits and node.operator == "Conv":
            kernel = node.attributes.get("kernel_shape", list(weights.shape[2:]))
            fits = list(weights.shape[2:]) == list(kernel) and weights.shape[1] * groups == shape[1]
            fits = fits and weights.shape[0] % groups == 0
        elif fits:
            fits = weights.shape[0 if transposed else 1] == shape[1]
        if not fits:
            raise GraphError(f"{node} has weights of shape {weights.shape} for an input of {shape}.", "Export it anew.")

    def check_axis(self, node: Node) -> None:
        rank = len(self.graph.shapes[node.outputs[0]])
        if node.attributes["axis"] % rank != 1:
            raise GraphError(f"{node} is not along the channels.", "The target native joins channels only.")

    def padding(self, node: Node) -> tuple[tuple[int, int, int, int], float]:
        pads = self.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        value = self.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        rank = len(self.graph.shapes[node.inputs[0]])
        axes = self.constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else np.arange(rank)
        mode = node.attributes.get("mode", b"constant")
        if pads is None or value is None or axes is None or mode != b"constant" or value.size != 1:
            raise GraphError(f"{node} is not padding by a constant.", "The target native knows constant padding only.")
        before, after = np.zeros(rank, int), np.zeros(rank, int)
        before[axes], after[axes] = np.split(pads, 2)
        if before[:2].any() or after[:2].any() or (before < 0).any() or (after < 0).any():
            raise GraphError(
                f"{node} pads batch or channels, or cuts.", "The target native pads rows and columns only."
            )
        top, left = (0, *before[2:])[-2:] if rank > 2 else (0, 0)
        bottom, right = (0, *after[2:])[-2:] if rank > 2 else (0, 0)
        return (int(top), int(left), int(bottom), int(right)), float(value.reshape(()))

    def pool(self, node: Node, output: str, onto: Quantized | None = None) -> AnyLayer | None:
        """Max and average pools, in FP32 or from uint8 to uint8."""
        operator, attributes = node.operator, node.attributes
        if operator not in ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
            return None
        source = node.inputs[0]
        shape = self.tensor("", like=self.resolve(source)).shape
        if operator == "ReduceMean":
            self.check_mean(node)
        if operator in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
            window = Window(kernel=shape[1:])
        else:
            if len(node.outputs) > 1 and node.outputs[1] and self.uses[node.outputs[1]]:
                raise GraphError(f"{node} gives indices.", "The target native knows pools of values only.")
            window = self.window(node, shape, attributes["kernel_shape"])
        kind = "max" if "Max" in operator else "average"
        multiplier = 1.0
        if onto is None:
            read = self.read(source)
        else:
            read, given = self.integer_input(source)
            multiplier = float(np.float32(given.scale / onto.scale))
            if kind == "max" and given != onto:
                raise _NotThis
        counts = bool(attributes.get("count_include_pad", 0))
        return Pool(node.name, operator, (read,), output, kind, window, counts, multiplier)  # type: ignore[arg-type]

    def check_mean(self, node: Node) -> None:
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1]:
            constant = self.constant(node.inputs[1])
            axes = None if constant is None else constant.tolist()
        rank = len(self.graph.shapes[node.inputs[0]])
        if axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
            raise GraphError(f"{node} is not a mean over rows and columns.", "The target native knows that one only.")

    def window(self, node: Node, shape: tuple[int, int, int], kernel: Sequence[int]) -> Window:
        """The window of a convolution or pool over a tensor of `shape`; pads as its output's shape needs them."""
        flat = len(kernel) == 1

        def two(values: Sequence[int]) -> tuple[int, int]:
            return (1, int(values[0])) if flat else (int(values[0]), int(values[1]))

        if len(kernel) > 2:
            raise GraphError(f"{node} has {len(kernel)} dimensions.", "The target native knows one and two.")
        lengths = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2}
        rank = len(self.graph.shapes[self.resolve(node.inputs[0])]) - 2
        if len(kernel) != rank or any(
            len(node.attributes.get(name, [0] * many * rank)) != many * rank for name, many in lengths.items()
        ):
            raise GraphError(f"{node} has attributes of other dimensions than its input.", "Export it anew.")
        spatial = [1] * len(kernel)
        strides, dilations = (two(node.attributes.get(name, spatial)) for name in ("strides", "dilations"))
        size = two(kernel)
        given = node.attributes.get("pads", [0] * 2 * len(kernel))
        top, left, bottom, right = (0, given[0], 0, given[1]) if flat else given
        if min(given) < 0:
            raise GraphError(f"{node} has negative padding.", "Cut the tensor before it.")
        outputs = self.tensor("", like=node.outputs[0]).shape[1:]
        needed = [
            (out - 1) * s + (k - 1) * d + 1 for out, s, k, d in zip(outputs, strides, size, dilations, strict=True)
        ]
        mode = node.attributes.get("auto_pad", b"NOTSET")
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            spare = [max(need - have, 0) for need, have in zip(needed, shape[1:], strict=True)]
            upper = mode == b"SAME_UPPER"
            top, left = (total // 2 if upper else total - total // 2 for total in spare)
            bottom, right = spare[0] - top, spare[1] - left
        return Window(size, strides, dilations, (int(top), int(left), int(bottom), int(right)))

    # Integers.

    def quantized(self, name: str, node: Node) -> AnyLayer:
        """The layer that makes a uint8 tensor: an integer one, or the conversion of an FP32 one."""
        onto = self.quantization(node)
        self.tensors[name] = self.tensor(name, onto)
        source = self.resolve(node.inputs[0])
        if source in self.producers:
            try:
                return self.integer(source, name, onto)
            except _NotThis:
                pass
        return Quantize(node.name, node.operator, (self.read(source),), name)

    def integer(self, source: str, output: str, onto: Quantized) -> AnyLayer:
        node = self.producers[source]
        if (product := self.product(source, output, onto)) is not None:
            return product
        if node.operator == "DequantizeLinear":  # from one scale to another
            return self.table(source, output, onto)
        if node.operator in _MOVES or node.operator == "Pad":
            read, given = self.integer_input(node.inputs[0])
            if given != onto:
                raise _NotThis
            if node.operator == "Pad":
                pads, value = self.padding(node)
                level = float(np.clip(np.rint(value / onto.scale) + onto.zero, 0, 255))
                return Pad(node.name, node.operator, (read,), output, pads, level)
            return Reshape(node.name, node.operator, (read,), output)
        if node.operator == "Concat":
            self.check_axis(node)
            reads = [self.integer_input(name) for name in node.inputs]
            tables = tuple(_requantization(given, onto) for _, given in reads)
            return Concat(node.name, node.operator, tuple(name for name, _ in reads), output, tables)
        if (pool := self.pool(node, output, onto)) is not None:
            return pool
        try:
            return self.table(source, output, onto)
        except _NotThis:
            pass
        if (affine := self.affine(source, output, onto)) is not None:
            return affine
        low, high = -INFINITY, INFINITY
        if node.operator in ("Relu", "Clip") and self.single(node.inputs[0]):
            low, high = self.limits(node)
            node = self.producer(node.inputs[0]) or node
        if node.operator in _BINARY:
            return self.binary(node, output, low, high, onto)
        raise _NotThis

    def table(self, source: str, output: str, onto: Quantized) -> Table:
        """A function of one uint8 tensor, whatever it is made of, as a table: its FP32 graph on all 256 values."""
        nodes: list[Node] = []
        roots: set[str] = set()
        open_, seen = [source], set()
        while open_:
            name = open_.pop()
            if name in seen or name in self.graph.constants:
                if name not in seen and self.graph.constants[name].size != 1:
                    raise _NotThis
                continue
            seen.add(name)
            node = self.producers.get(name)
            if node is None:
                raise _NotThis
            if node.operator == "DequantizeLinear":
                roots.add(name)
                continue
            if node.operator not in _ELEMENTWISE and node.operator not in _SAME:
                raise _NotThis
            nodes.append(node)
            open_ += [read for read in node.inputs if read]
        if len({self.resolve(root) for root in roots}) != 1:
            raise _NotThis
        root = next(iter(roots))
        read, given = self.integer_input(root)
        values = _values(given)
        if nodes:
            values = self.evaluate(nodes, root, source, values)
        last = self.producers[source]
        return Table(last.name, last.operator, (read,), output, _as_levels(values, onto))

    def evaluate(
        self, nodes: Sequence[Node], root: str, output: str, values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        ordered = sorted(nodes, key=lambda node: self.positions[node.outputs[0]])
        constants = {
            name: self.graph.constants[name] for node in nodes for name in node.inputs if name in self.graph.constants
        }
        graph = helper.make_graph(
            [
                helper.make_node(node.operator, node.inputs, node.outputs, node.name, **node.attributes)
                for node in ordered
            ],
            "function",
            [helper.make_tensor_value_info(root, TensorProto.FLOAT, [1, 256])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        )
        graph.initializer.extend(
            helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), [], array.reshape(-1))
            for name, array in constants.items()
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.graph.opset)])
        try:
            with np.errstate(all="ignore"):  # a table may have levels that no sample reaches
                (result,) = ReferenceEvaluator(model).run(None, {root: values.reshape(1, 256)})
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise GraphError(f"{nodes[0]} can't be computed: {reason}", "Export it anew.") from error
        computed: NDArray[np.float32] = np.nan_to_num(np.asarray(result, np.float32).reshape(256))
        return computed


def _levels(low: float, high: float, onto: Quantized) -> tuple[float, float]:
    """Limits of FP32 values as levels of uint8."""
    limits = [0.0 if np.isinf(value) and value < 0 else 255.0 if np.isinf(value) else value for value in (low, high)]
    if not np.isinf(low):
        limits[0] = float(np.clip(np.rint(low / onto.scale) + onto.zero, 0, 255))
    if not np.isinf(high):
        limits[1] = float(np.clip(np.rint(high / onto.scale) + onto.zero, 0, 255))
    return limits[0], limits[1]


def _of_16_bits(value: float) -> float:
    """The nearest number whose product with any uint8 is exact in FP32."""
    fraction, exponent = np.frexp(value)
    return float(np.ldexp(np.rint(np.ldexp(fraction, 16)), exponent - 16))


def _requantization(given: Quantized, onto: Quantized) -> NDArray[np.uint8]:
    return _as_levels(_values(given), onto)


def _values(given: Quantized) -> NDArray[np.float32]:
    """What each of the 256 levels stands for."""
    return ((np.arange(256) - given.zero) * np.float32(given.scale)).astype(np.float32)


def _as_levels(values: NDArray[np.float32], onto: Quantized) -> NDArray[np.uint8]:
    levels = np.rint((values / np.float32(onto.scale)).astype(np.float64)) + onto.zero
    clipped: NDArray[np.float64] = np.clip(levels, 0, 255)
    return clipped.astype(np.uint8)


class _Linear:
    """A convolution or matrix product on its way to a layer: FP32 weights, and INT8 ones where there are some."""

    def __init__(
        self, node: Node, source: str, weights: NDArray[Any], offsets: NDArray[np.float64], window: Window, groups: int
    ) -> None:
        self.node, self.source, self.weights, self.window, self.groups = node, source, weights, window, groups
        self.offsets = offsets
        self.multipliers = np.ones(len(weights))
        self.stored: NDArray[np.int8] | None = None
        self.scales = np.ones(len(weights))

    @classmethod
    def of(cls, fuser: _Fuser, node: Node) -> _Linear:
        weights = fuser.constant(node.inputs[1])
        if weights is None:
            raise GraphError(
                f"{node} multiplies by {node.inputs[1]}, which is no constant.",
                "The target native compiles products with constant weights; it has no kernels for attention.",
            )
        source = node.inputs[0]
        bias: NDArray[Any] | None = None
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = fuser.constant(node.inputs[2])
            if bias is None:
                raise GraphError(f"{node} adds {node.inputs[2]}, which is no constant.", "Export it with a constant.")
        kept = fuser.graph.integers.get(node.inputs[1])
        window, groups, beta, transposed = Window(), 1, 1.0, False
        if node.operator == "Conv":
            groups = node.attributes.get("group", 1)
            source, extra = cls._padded(fuser, source)
            shape = fuser.tensor("", like=fuser.resolve(source)).shape
            window = fuser.window(node, shape, weights.shape[2:])
            window = Window(
                window.kernel, window.strides, window.dilations,
                tuple(a + b for a, b in zip(window.pads, extra, strict=True)),  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            if fuser.tensor("", like=fuser.resolve(source)).shape[1:] != (1, 1):
                raise GraphError(
                    f"{node} multiplies a tensor of shape {fuser.graph.shapes[fuser.resolve(source)]}.",
                    "The target native multiplies (batch, channels): flatten before it.",
                )
            if node.attributes.get("transA", 0):
                raise GraphError(f"{node} transposes its input.", "Export it without transA.")
            transposed = not node.attributes.get("transB", 0)
            beta = node.attributes.get("beta", 1.0)
        fuser.check_weights(node, source, weights, groups, transposed)
        alpha = node.attributes.get("alpha", 1.0) if node.operator == "Gemm" else 1.0
        matrix = weights.T if transposed else weights
        shaped = _kernel(matrix)
        offsets = np.zeros(len(shaped))
        if bias is not None:
            if bias.size not in (1, len(shaped)):
                raise GraphError(
                    f"{node} adds {node.inputs[2]} of shape {bias.shape}.",
                    f"The target native adds a value for each of the {len(shaped)} outputs.",
                )
            offsets = beta * np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), len(shaped))
        linear = cls(node, source, shaped, offsets.copy(), window, groups)
        linear.multipliers *= alpha
        outputs = 1 if transposed else 0
        if kept is None or fuser.dequantized(source) is None or (kept.scales < 0).any():
            return linear
        stored = _kernel(kept.array.T if transposed else kept.array)
        if np.abs(stored.reshape(len(shaped), -1).astype(np.int64)).sum(1).max() * 255 > _MOST_PRODUCTS:
            return linear  # computed in FP32
        if kept.scales.size == 1 or (kept.scales.size == len(shaped) and kept.axis == outputs):
            linear.stored = stored
            linear.scales = np.broadcast_to(kept.scales.astype(np.float64).reshape(-1), len(shaped)).copy()
        return linear

    @staticmethod
    def _padded(fuser: _Fuser, source: str) -> tuple[str, tuple[int, int, int, int]]:
        """What an explicit Pad by zeros before a convolution reads, and its padding."""
        node = fuser.producer(source)
        if node is None or node.operator != "Pad" or not fuser.single(source):
            return source, (0, 0, 0, 0)
        pads, value = fuser.padding(node)
        return (node.inputs[0], pads) if value == 0 else (source, (0, 0, 0, 0))

    @property
    def integer(self) -> bool:
        return self.stored is not None

    def follow(self, multipliers: NDArray[np.float64], offsets: NDArray[np.float64]) -> None:
        """Let `x * multipliers + offsets` follow."""
        self.multipliers, self.offsets = self.multipliers * multipliers, self.offsets * multipliers + offsets

    def folded(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        along = self.multipliers.reshape(-1, 1, 1, 1)
        return (self.weights * along).astype(np.float32), self.offsets.astype(np.float32)

    def integers_and_steps(self, scale: float) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """INT8 weights, and what a product of one with one level of an input of `scale` stands for: (outputs,).

        Where a bias would not fit into int32 in such steps, the weights hardly count beside it: they are rounded to
        larger ones. Where all weights are zero, their scale means nothing, and may be too coarse for the bias.
        """
        assert self.stored is not None
        negative = self.multipliers < 0
        integers = np.where(negative.reshape(-1, 1, 1, 1), -self.stored.astype(np.int16), self.stored)
        steps = np.abs(self.scales * self.multipliers) * scale
        sizes = np.abs(self.offsets)
        least = np.maximum(sizes / _MOST_BIAS, np.finfo(np.float32).tiny)
        ratio = np.minimum(steps / least, 1.0)
        integers = np.clip(np.rint(integers * ratio.reshape(-1, 1, 1, 1)), -128, 127).astype(np.int8)
        dead = (integers == 0).reshape(len(integers), -1).all(1)
        return integers, np.where(dead, np.where(sizes > 0, sizes / _BIAS_ALONE, 1.0), np.maximum(steps, least))


def _kernel(weights: NDArray[Any]) -> NDArray[Any]:
    """Weights as (outputs, inputs, height, width)."""
    if weights.ndim == 2:
        return weights[:, :, None, None]
    return weights[:, :, None, :] if weights.ndim == 3 else weights
