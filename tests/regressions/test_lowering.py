"""Symptoms of lowering and of what is said about it: each test names the one that a user saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from acdc_export import Pair, export, pair
from acdc_export.errors import CalibrationError
from acdc_export.pair import Half, PatternRecord
from acdc_export.records.report import Report

from ..conftest import SIDE, network, weights
from ..test_workflow import quick_target

X = np.random.default_rng(5).normal(size=(24, 1, SIDE, SIDE)).astype(np.float32)
LAYERS = ("conv1.weight", "conv2.weight", "head.weight")

# ------------------------------------------------------------------------------------------------ int8


def build_pair(folder: Path, **changes: float) -> Pair:
    """The small network of the tests, with arrays of both halves (dots in their names as underscores) changed."""
    graphs = {}
    for half, sparsity in (("sparse", 0.9), ("dense", 0.0)):
        state = weights(1, sparsity)
        for name, value in changes.items():
            state[name.replace("_", ".")][...] = value
        graphs[half] = network(state)
    return pair_of(folder, graphs, X)


def pair_of(folder: Path, graphs: Mapping[Half, onnx.ModelProto], x: np.ndarray) -> Pair:
    halves = {half: graph.SerializeToString() for half, graph in graphs.items()}
    outputs = {}
    for half, content in halves.items():
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        outputs[half] = {"logits": session.run(None, {"input": x})[0]}
    return pair.build(
        folder, halves, inputs={"input": x}, outputs=outputs, computed_by="ONNX Runtime",
        pattern=PatternRecord("unstructured", "uniform", 0.9, {}),
    )  # fmt: skip


def deploy(made: Pair, folder: Path, target: str, *, x: np.ndarray = X, keep: Sequence[str] = ()) -> Report:
    """The report of the pair in INT8 by one of our schemes, in a real engine."""
    np.savez(folder / "training.npz", x=x, y=np.zeros(len(x), dtype=np.int64))
    np.savez(folder / "labelled.npz", x=x, y=np.arange(len(x)) % 4)
    changes = {
        "cpu": (('controls = ["onnxruntime", "openvino"]', "controls = []"), ("[1, 16]", "[16]")),
        "onnxruntime": (
            ("build = true ", 'scheme = "qdq" '),
            ("samples = true", "samples = false"),
            ("[1, 16]", "[16]"),
        ),
    }[target]
    folder_of_target = quick_target(folder / f"{target}-{len(keep)}", target, *changes)
    return export(
        made, folder_of_target, precision="int8", calibrate=str(folder / "training.npz"),
        data=str(folder / "labelled.npz"), keep_fp32=list(keep), out=folder / "bundles", budget=1,
        gates=["accuracy.sparse >= 99"],
    ).report  # fmt: skip


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
@pytest.mark.parametrize(
    ("changes", "unvaried"),
    [({"conv1_bias": -100.0}, ["conv2.weight"]), ({"conv1_weight": 0.0, "conv1_bias": 0.3}, ["conv2.weight"])],
)
def test_a_relu_that_never_fires_is_quantized(
    tmp_path: Path, target: str, changes: dict[str, float], unvaried: list[str]
) -> None:
    """int8: "The activation ... is 0 for all samples", though ONNX Runtime's own quantizer manages."""
    report = deploy(build_pair(tmp_path / "pair", **changes), tmp_path, target)
    assert all(half.ok for halves in report.parity.values() for half in halves.values())
    (note,) = (note for note in report.notes if "of the sparse half is the same for all calibration samples" in note)
    assert all(name in note for name in unvaried)


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_where_every_layer_stays_in_fp32_the_report_says_so(tmp_path: Path, target: str) -> None:
    """int8: IndexError where `--keep-fp32` names all layers and a gate on accuracy fails."""
    report = deploy(build_pair(tmp_path / "pair"), tmp_path, target, keep=LAYERS)
    assert report.structure.int8_layers == (0, 3)
    assert "No layer of the sparse half is in INT8: all 3 stay in FP32." in report.notes
    assert report.parity["16"]["sparse"].required < 1e-4
    assert report.exit_code == 1


@pytest.mark.runtime
def test_a_layer_in_fp32_may_take_what_is_not_finite(tmp_path: Path) -> None:
    """int8: `--keep-fp32` on the layer doesn't help, since calibration looks at all activations."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),  # infinite in half of the samples
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "third"], ["logits"]),
    ]
    arrays = {"first": [[1e4]], "second": random.random((1, 8)), "third": random.normal(size=(8, 4))}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    x = random.normal(size=(24, 1)).astype(np.float32)
    made = pair_of(tmp_path / "pair", {"sparse": model, "dense": model}, x)
    with pytest.raises(CalibrationError, match="The activation b is not finite") as caught:
        deploy(made, tmp_path, "onnxruntime", x=x)
    assert "--keep-fp32 second" in caught.value.remedy
    report = deploy(made, tmp_path, "onnxruntime", x=x, keep=["second"])
    assert report.structure.int8_layers == (2, 3)
    assert report.parity["16"]["sparse"].ok


# ------------------------------------------------------------------------------------- what the engine says of itself


@pytest.mark.runtime
@pytest.mark.parametrize(("target", "said"), [("onnxruntime", "fp32"), ("openvino", "f32")])
def test_what_the_engine_says_that_it_computes_in_reaches_the_report(tmp_path: Path, target: str, said: str) -> None:
    """OpenVINO: was its default f32 or bf16? `info()["precision"]` never reached the report."""
    made = build_pair(tmp_path / "pair")
    folder = quick_target(tmp_path / target, target, ("[1, 16]", "[16]"))
    written = export(made, folder, precision="fp32", out=tmp_path / "bundles", budget=1)
    assert written.report.target.computes_in == said
    assert f"Computes in: {said}, as {target} says." in (written.path / "report.md").read_text()


# ------------------------------------------------------------------------------------------------ the fast path


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("operators", "slow"),
    [
        (["Sin", "MatMul"], "Sin"),
        (["Cos", "MatMul", "Relu", "Abs"], "Cos, Abs"),
        (["MatMul", "Sign", "MatMul"], "Sign"),
    ],
)
def test_the_operator_off_the_fast_path_is_named(tmp_path: Path, operators: list[str], slow: str) -> None:
    """`Linear(sin(x))`: "Not on the engine's fast path: Gemm"."""
    random = np.random.default_rng(0)
    values = ["input", *(f"v{at}" for at in range(len(operators) - 1)), "logits"]
    nodes = [
        helper.make_node(operator, [values[at], *(["w"] if operator == "MatMul" else [])], [values[at + 1]])
        for at, operator in enumerate(operators)
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(random.normal(size=(16, 16)).astype(np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    model = onnx.shape_inference.infer_shapes(model)
    x = random.normal(size=(16, 16)).astype(np.float32)
    made = pair_of(tmp_path / "pair", {"sparse": model, "dense": model}, x)
    changes = (('controls = ["onnxruntime", "openvino"]', "controls = []"), ("[1, 16]", "[16]"))
    target = quick_target(tmp_path / "cpu", "cpu", *changes)
    report = export(made, target, out=tmp_path / "bundles", budget=1).report
    assert list(report.structure.unsupported) == slow.split(", ")
    assert f"Not on the engine's fast path: {slow}." in report.notes
