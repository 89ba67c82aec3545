"""Asking an engine which operators it doesn't know: by a model of an engine, and DeepSparse itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from acdc_export import lowering
from acdc_export.config import load_target
from acdc_export.engines import InstalledTarget, ensure, status
from acdc_export.errors import EngineError
from acdc_export.lowering import Deployment

from ..conftest import network, weights

WIDTH = 16
WEIGHTED = {"Gemm", "MatMul", "Conv"}


def node(operator: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)  # type: ignore[arg-type]


def save(path: Path, nodes: Sequence[NodeProto], inputs: str = "x", shape: Sequence[int] = (4, WIDTH)) -> Path:
    """A graph that ends in "y"; W is a weight for a product, V one for a convolution."""
    random = np.random.default_rng(0)
    arrays = {
        "W": random.normal(size=(WIDTH, WIDTH)),
        "V": random.normal(size=(8, 2, 1, 1)),
        "sqrt2": np.array(2**0.5),
        "one": np.array(1.0),
        "half": np.array(0.5),
    }
    read = {name for each in nodes for name in each.input}
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs.split()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items() if name in read],
    )
    model = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def engine(unknown: set[str], forms: Sequence[tuple[str, str]] = ()) -> Callable[[Path], float | None]:
    """A probe like DeepSparse: a part that no weight reaches is not looked at, and runs beside the fast path.

    It takes the first operator of `forms` where the second reads what it gives.
    """

    def probe(path: Path) -> float:
        graph = onnx.load(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        parts = {value.name: {value.name} for value in graph.input}  # by value, all that it is connected to
        taken, weighted = [], set()
        for each in graph.node:
            joined = {each.output[0]}.union(*(parts.get(name, set()) for name in each.input))
            readers = {other.op_type for other in graph.node if each.output[0] in other.input}
            known = each.op_type not in unknown or any((each.op_type, reader) in forms for reader in readers)
            if known:
                parts.update(dict.fromkeys(joined, joined))
                taken.append(each.output[0])
                if each.op_type in WEIGHTED and constants & set(each.input):
                    weighted |= {each.output[0]}
        return sum(bool(parts[name] & weighted) for name in taken) / len(graph.node)

    return probe


def gelu(x: str, to: str) -> list[NodeProto]:
    return [
        node("Div", f"{x} sqrt2", f"{to}1"), node("Erf", f"{to}1", f"{to}2"), node("Add", f"{to}2 one", f"{to}3"),
        node("Mul", f"{x} {to}3", f"{to}4"), node("Mul", f"{to}4 half", to),
    ]  # fmt: skip


GRAPHS = {
    "before the only weight": ([node("Sin", "x", "a"), node("Gemm", "a W", "y")], "x", ["Sin"]),
    "before and behind": (
        [node("Sin", "x", "a"), node("Gemm", "a W", "b"), node("Sin", "b", "c"), node("Gemm", "c W", "y")],
        "x",
        ["Sin"],
    ),
    "three of them": (
        [
            node("Sin", "x", "a"), node("Gemm", "a W", "b"), node("Cos", "b", "c"), node("Gemm", "c W", "d"),
            node("Abs", "d", "e"), node("Relu", "e", "y"),
        ],
        "x",
        ["Sin", "Cos", "Abs"],
    ),
    "two inputs": (
        [node("Sin", "x", "a"), node("Sign", "z", "b"), node("Add", "a b", "c"), node("Gemm", "c W", "y")],
        "x z",
        ["Sin", "Sign"],
    ),
    "one of two branches": (
        [node("Gemm", "x W", "a"), node("Relu", "z", "b"), node("Sin", "b", "c"), node("Add", "a c", "y")],
        "x z",
        ["Sin"],
    ),
    "a form that is taken as a whole": (
        [*gelu("x", "a"), node("Gemm", "a W", "b"), *gelu("b", "c"), node("Gemm", "c W", "d"), node("Sign", "d", "y")],
        "x",
        ["Sign"],
    ),
    "the same operator outside of its form": (
        [*gelu("x", "a"), node("Gemm", "a W", "b"), node("Erf", "b", "c"), node("Gemm", "c W", "y")],
        "x",
        ["Erf"],
    ),
    "nothing": ([*gelu("x", "a"), node("Gemm", "a W", "y")], "x", []),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_the_operator_is_named_wherever_it_is(tmp_path: Path, name: str) -> None:
    nodes, inputs, named = GRAPHS[name]
    probe = engine({"Sin", "Cos", "Abs", "Sign", "Erf"}, [("Erf", "Add")])
    assert lowering.unsupported(save(tmp_path / "model.onnx", nodes, inputs), tmp_path, probe) == named


@pytest.mark.parametrize(("unknown", "named"), [({"ReduceMean"}, ["ReduceMean"]), ({"Relu"}, ["Relu"]), (set(), [])])
def test_a_convolutional_network(tmp_path: Path, unknown: set[str], named: list[str]) -> None:
    onnx.save(network(weights(1, 0.9)), tmp_path / "model.onnx")
    assert lowering.unsupported(tmp_path / "model.onnx", tmp_path, engine(unknown)) == named


@given(st.data())
@settings(max_examples=60)
def test_all_of_them_are_named_and_no_other(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("graph")
    nodes, values = [], ["x"]
    for at in range(data.draw(st.integers(1, 8))):
        operator = data.draw(st.sampled_from(["Relu", "Tanh", "Gemm", "Add", "Sin", "Cos"]))
        operands = {"Gemm": 1, "Add": 2}.get(operator, 1)
        read = [data.draw(st.sampled_from(values[-2:])) for _ in range(operands)]
        nodes.append(node(operator, " ".join([*read, *(["W"] if operator == "Gemm" else [])]), f"v{at}"))
        values.append(f"v{at}")
    nodes.append(node("Gemm", f"{values[-1]} W", "y"))
    live, reached = {"y"}, []
    for each in reversed(nodes):
        if each.output[0] in live:
            live |= set(each.input)
            reached.append(each)
    nodes = reached[::-1]
    unknown = {"Sin", "Cos"}
    named = lowering.unsupported(save(folder / "model.onnx", nodes), folder, engine(unknown))
    assert named == list(dict.fromkeys(each.op_type for each in nodes if each.op_type in unknown))


def test_an_engine_that_refuses_a_part_blames_nobody(tmp_path: Path) -> None:
    """Only a fraction is evidence: a part may be refused for what the whole has and it has not."""
    path = save(tmp_path / "model.onnx", [node("Sin", "x", "a"), node("Gemm", "a W", "b"), node("Relu", "b", "y")])
    assert lowering.unsupported(path, tmp_path, lambda part: None) == []


@pytest.mark.runtime
@pytest.mark.parametrize(
    "name", ["before and behind", "two inputs", "one of two branches", "the same operator outside of its form"]
)
def test_deepsparse_is_asked(tmp_path: Path, name: str) -> None:
    nodes, inputs, named = GRAPHS[name]
    assert ask_deepsparse(save(tmp_path / "model.onnx", nodes, inputs), tmp_path) == named


@pytest.mark.runtime
def test_deepsparse_is_asked_about_images(tmp_path: Path) -> None:
    nodes = [
        node("MaxPool", "x", "a", kernel_shape=[2, 2]), node("Sin", "a", "b"), node("Conv", "b V", "c"),
        node("Relu", "c", "y"),
    ]  # fmt: skip
    assert ask_deepsparse(save(tmp_path / "model.onnx", nodes, shape=(4, 2, 6, 6)), tmp_path) == ["Sin"]


def ask_deepsparse(path: Path, folder: Path) -> list[str]:
    target = load_target("cpu")
    if status(target).state == "unavailable":
        pytest.skip(status(target).detail)
    deployment = Deployment(InstalledTarget(target, ensure(target)), "fp32")

    def probe(part: Path) -> float | None:
        try:
            with closing(deployment.open(part, 4, [0])) as opened:
                return float(opened.info()["supported_ops"])
        except EngineError:
            return None

    return lowering.unsupported(path, folder, probe)
