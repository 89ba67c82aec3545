"""Ask an engine which operators it does not take onto its fast path.

Engines tell one fraction for the whole graph, and look only at what a weight belongs to. So parts of the graph are
asked about, each the beginning of it up to some operator:

- A value that no weight has reached yet gets a weighted operator behind it. The engine is asked first whether it
  takes that operator alone, so that the answer is about what lies before.
- Halving finds an operator up to which the graph is not on the fast path, while the part before it is.
- Some operators are taken only as part of a form (Erf within a GELU). So the part may go on for a few operators: if a
  longer part is on the fast path, the operator is no obstacle.
- An operator that is one is named, and cut out: what it gives becomes an input, and the search goes on behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from .audit import weight_of

Probe = Callable[[Path], float | None]
"""Loads an ONNX file and returns the fraction (0 to 1) of its operators that are supported; None if it is refused."""

_AHEAD = 8  # operators that a form may have behind one that is not taken by itself
_CHANNELS = 16  # that an added operator gives
_CAST = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL)
"""What is not in FP32 and can be cast to it before an added operator."""


def unsupported(path: Path, folder: Path, probe: Probe) -> list[str]:
    """Return the operator types of the graph `path` that are not on the fast path of the engine behind `probe`.

    They are in the graph's order. The parts that are asked about are written to `folder`. An operator whose outputs
    have no known shape hides what depends on it: that is not looked at.
    """
    return _Search(_Graph(path), folder, probe).run()


class _Graph:
    """The nodes of an ONNX file in topological order, what they read, and what is known of values."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.shape_inference.infer_shapes(onnx.load(path))
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.reads = [set(_reads(node)) for node in self.nodes]
        self.weighted = [weight_of(node) is not None for node in ir.from_proto(self.model).graph]
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.constants]
        self.outputs = {value.name for value in graph.output}
        self.values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """The nodes that read each value, by index."""
        readers: dict[str, list[int]] = {}
        for index, names in enumerate(self.reads):
            for name in names:
                readers.setdefault(name, []).append(index)
        return readers

    def behind(self, index: int) -> list[int]:
        """The nodes that depend on a node, in order."""
        reached, values = [], set(self.nodes[index].output)
        for later in range(index + 1, len(self.nodes)):
            if self.reads[later] & values:
                reached.append(later)
                values |= set(self.nodes[later].output)
        return reached

    def shape(self, name: str) -> tuple[int, tuple[int, ...]] | None:
        """The element type and the shape of a value; None unless both are known."""
        tensor = self.values[name].type.tensor_type if name in self.values else None
        if tensor is None or not tensor.elem_type or not tensor.HasField("shape"):
            return None
        if not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            return None
        return tensor.elem_type, tuple(dimension.dim_value for dimension in tensor.shape.dim)

    def write(
        self, nodes: Sequence[onnx.NodeProto], constants: Sequence[TensorProto], names: Sequence[str], path: Path,
        inputs: Sequence[onnx.ValueInfoProto],
    ) -> None:  # fmt: skip
        """Write a part of the graph: these nodes and constants beside its own, with the outputs `names`."""
        read = {name for node in nodes for name in _reads(node)}
        outputs = [
            self.values.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
        ]
        kept = [tensor for name, tensor in self.constants.items() if name in read]
        made = helper.make_graph(
            nodes, "part", [value for value in inputs if value.name in read], outputs, [*kept, *constants]
        )
        model = helper.make_model(
            made, ir_version=self.model.ir_version, opset_imports=self.model.opset_import,
            functions=self.model.functions,
        )  # fmt: skip
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


@dataclass(frozen=True)
class _Tail:
    """A weighted operator to be put behind a value that no weight has reached."""

    operator: str
    weight: tuple[int, ...]  # its shape
    cast: bool  # to FP32, before it

    def nodes(self, name: str, output: str) -> tuple[list[onnx.NodeProto], TensorProto]:
        """The nodes from the value `name` to `output`, and their weight."""
        weight, cast = f"{output}_weight", f"{output}_cast"
        array = np.random.default_rng(0).normal(size=self.weight).astype(np.float32)
        first = [helper.make_node("Cast", [name], [cast], to=TensorProto.FLOAT)] if self.cast else []
        node = helper.make_node(self.operator, [cast if self.cast else name, weight], [output])
        return [*first, node], numpy_helper.from_array(array, weight)


class _Search:
    """The search in one graph, for one engine."""

    def __init__(self, graph: _Graph, folder: Path, probe: Probe) -> None:
        self.graph, self.folder, self.probe = graph, folder, probe
        self.cut: set[int] = set()  # nodes whose outputs are inputs now
        self.parts = 0
        self.answers: dict[tuple[int, frozenset[int]], bool | None] = {}
        self.tails: dict[tuple[int, tuple[int, ...]], list[_Tail]] = {}  # that the engine takes, by type and shape

    def run(self) -> list[str]:
        """The operator types that are not on the fast path."""
        last, clean = len(self.graph.nodes) - 1, -1  # the part up to `clean` is on the fast path
        named: list[str] = []
        while clean < last and self.is_clean(last) is not True:
            suspect = last
            while suspect - clean > 1:
                middle = (clean + suspect) // 2
                clean, suspect = (middle, suspect) if self.is_clean(middle) else (clean, middle)
            ahead = self.graph.behind(suspect)[:_AHEAD]
            further = next((index for index in ahead if self.is_clean(index)), None)
            if further is not None:
                clean = further
                continue
            operator = self.graph.nodes[suspect].op_type
            if self.is_clean(suspect) is False:
                named.append(operator)
                self.cut |= {index for index, node in enumerate(self.graph.nodes) if node.op_type == operator}
            self.cut.add(suspect)
            clean = suspect
        return named

    def is_clean(self, end: int) -> bool | None:
        """Whether the graph up to the node `end` is on the fast path; None if the engine doesn't say."""
        key = end, frozenset(index for index in self.cut if index <= end)
        if key not in self.answers:
            answers = [None if fraction is None else fraction >= 1.0 for fraction in self._fractions(end)]
            self.answers[key] = any(answers) or (None if None in answers else not answers)
        return self.answers[key]

    def _fractions(self, end: int) -> Iterator[float | None]:
        """What the engine says of the graph up to a node, with one choice of added operators and then with another.

        Nothing, if no value of it can be asked about.
        """
        graph = self.graph
        nodes, inputs = self._kept(end)
        weighted: set[str] = set()  # values that a weight has reached
        for index in nodes:
            if graph.weighted[index] or graph.reads[index] & weighted:
                weighted |= set(graph.nodes[index].output)
        inside = set(nodes)
        ends = [
            name
            for index in nodes
            for name in graph.nodes[index].output
            if name in graph.outputs or any(reader not in inside for reader in graph.readers.get(name, ()))
        ]
        plain = [name for name in ends if name in weighted]
        bare = {name: tails for name in ends if name not in weighted and (tails := self._tails(name))}
        if not plain and not bare:
            return
        for choice in range(max(map(len, bare.values()), default=1)):
            names, added, constants = list(plain), [], []
            for at, (name, tails) in enumerate(bare.items()):
                more, weight = tails[min(choice, len(tails) - 1)].nodes(name, f"acdc_export_added_{at}")
                names.append(more[-1].output[0])
                added += more
                constants.append(weight)
            reached = [graph.nodes[index] for index in self._leading_to({*plain, *bare}, nodes)]
            path = self._path()
            graph.write([*reached, *added], constants, names, path, inputs)
            yield self.probe(path)

    def _kept(self, end: int) -> tuple[list[int], list[onnx.ValueInfoProto]]:
        """The nodes up to `end` that can be computed without those that are cut out, and the inputs for them."""
        graph = self.graph
        inputs = list(graph.inputs)
        missing: set[str] = set()
        nodes = []
        for index in range(end + 1):
            node = graph.nodes[index]
            if index in self.cut:
                known = [name for name in node.output if graph.shape(name)]
                inputs += [graph.values[name] for name in known]
                missing |= set(node.output) - set(known)
            elif graph.reads[index] & missing:
                missing |= set(node.output)
            else:
                nodes.append(index)
        return nodes, inputs

    def _leading_to(self, names: set[str], nodes: Sequence[int]) -> list[int]:
        """Those of the nodes that the values `names` depend on."""
        wanted, leading = set(names), []
        for index in reversed(nodes):
            if wanted & set(self.graph.nodes[index].output):
                wanted |= self.graph.reads[index]
                leading.append(index)
        return leading[::-1]

    def _tails(self, name: str) -> list[_Tail]:
        """The weighted operators that can be put behind a value, and that the engine takes by themselves."""
        known = self.graph.shape(name)
        if known is None:
            return []
        if known not in self.tails:
            self.tails[known] = [tail for tail in _tails_of(*known) if self._takes(tail, *known)]
        return self.tails[known]

    def _takes(self, tail: _Tail, kind: int, shape: tuple[int, ...]) -> bool:
        nodes, weight = tail.nodes("value", "output")
        path = self._path()
        self.graph.write(nodes, [weight], ["output"], path, [helper.make_tensor_value_info("value", kind, shape)])
        return (self.probe(path) or 0.0) >= 1.0

    def _path(self) -> Path:
        self.parts += 1
        return self.folder / f"part-{self.parts}.onnx"


def _tails_of(kind: int, shape: tuple[int, ...]) -> list[_Tail]:
    """The weighted operators that fit behind a value: a product along its last axis, a convolution over its second."""
    if kind not in (TensorProto.FLOAT, *_CAST) or len(shape) < 2 or 0 in shape:
        return []
    product = _Tail("MatMul", (shape[-1], _CHANNELS), kind in _CAST)
    convolution = _Tail("Conv", (_CHANNELS, shape[1], *[1] * (len(shape) - 2)), kind in _CAST)
    return [convolution, product] if len(shape) == 4 else [product]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, those in its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)
