"""Symptoms of lowering and of what is said about it: each test names the one that a user saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from acdc_export import Pair, export, pair
from acdc_export.errors import CalibrationError, UsageError
from acdc_export.inspection import inspect
from acdc_export.pair import Half, PatternRecord
from acdc_export.present import document, text
from acdc_export.records.inspection import Part
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


# ------------------------------------------------------------------------------------------------ counting zeros

_W = np.where(np.random.default_rng(3).random((8, 12)) < 0.9, 0, np.random.default_rng(4).normal(size=(8, 12))).astype(
    np.float32
)


def matmul_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, np.ndarray] | None = None,
    sparse: Sequence[onnx.SparseTensorProto] = (),
    rows: int = 8,
) -> Path:
    """A graph from x (1, rows) to y, whose last nodes give y; not checked, since some domains have no schema."""
    graph = helper.make_graph(
        list(nodes), "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (arrays or {}).items()],
        sparse_initializer=list(sparse),
    )  # fmt: skip
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=domains), path)
    return path


def inspected(path: Path) -> Part:
    (part,) = inspect(path).parts
    return part


def sparse_tensor(array: np.ndarray, name: str, *, coordinates: bool) -> onnx.SparseTensorProto:
    where = np.argwhere(array) if coordinates else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(where.astype(np.int64), ""), array.shape)


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_sparse_initializers_are_counted(tmp_path: Path, coordinates: bool, constant: bool) -> None:
    """inspect: "0.00 % of 0" of a file whose weights are sparse initializers."""
    tensor = sparse_tensor(_W, "w", coordinates=coordinates)
    made = [helper.make_node("Constant", [], ["w"], sparse_value=tensor)] if constant else []
    path = matmul_file(tmp_path / "net.onnx", [*made, PRODUCT], sparse=[] if constant else [tensor])
    (weight,) = inspected(path).weights
    assert (weight.zeros, weight.total) == ((_W == 0).sum(), 96)


def test_zeros_are_what_equals_the_zero_point_of_each_channel(tmp_path: Path) -> None:
    """inspect: "0.09 %" of uint8 weights whose zero is the zero point."""
    points = np.arange(100, 112, dtype=np.uint8)
    stored = (np.where(_W == 0, 0, 5) + points).astype(np.uint8)
    arrays = {"q": stored, "scale": np.full(12, 0.1, dtype=np.float32), "zero": points}
    behind = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1)
    (weight,) = inspected(matmul_file(tmp_path / "net.onnx", [behind, PRODUCT], arrays)).weights
    assert (weight.zeros, weight.name) == ((_W == 0).sum(), "q")


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8])
def test_the_zeros_of_onnxruntimes_quantizer(
    tmp_path: Path, form: QuantFormat, per_channel: bool, kind: QuantType
) -> None:
    """inspect: files of ONNX Runtime's own quantizer, 90 % zero: "0.09 %", or "0.00 % of 0" in QOperator form."""
    state = weights(1, 0.9)
    source = tmp_path / "net.onnx"
    onnx.save(network(state), source)
    samples = iter([{"input": X[:8]}, {"input": X[8:16]}])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(samples, None)

    quantize_static(
        str(source), str(tmp_path / "int8.onnx"), Reader(), quant_format=form, per_channel=per_channel,
        weight_type=kind,
        activation_type=QuantType.QUInt8,
    )  # fmt: skip
    before, after = inspected(source), inspected(tmp_path / "int8.onnx")
    assert [weight.total for weight in after.weights] == [weight.total for weight in before.weights]
    for old, new in zip(before.weights, after.weights, strict=True):
        assert old.zeros <= new.zeros <= old.zeros + 0.03 * old.total  # small weights are rounded to zero
    assert not after.uncounted


NBITS = helper.make_node(
    "MatMulNBits", ["x", "packed", "scales"], ["h"], domain="com.microsoft", K=8, N=8, bits=4, block_size=16
)
PACKED = {"packed": np.zeros((8, 1, 8), dtype=np.uint8), "scales": np.ones((8, 1), dtype=np.float32)}


def test_what_is_not_counted_is_named(tmp_path: Path) -> None:
    """inspect: weights that it can't read are left out of the sum, without a word."""
    product = helper.make_node("MatMul", ["h", "w"], ["y"])
    part = inspected(matmul_file(tmp_path / "net.onnx", [NBITS, product], {**PACKED, "w": _W}))
    assert [weight.name for weight in part.weights] == ["w"]
    assert [(left.operator, left.name) for left in part.uncounted] == [("MatMulNBits", "packed")]
    behind = helper.make_node("Unpack", ["v"], ["w"], domain="com.microsoft")
    second = helper.make_node("MatMul", ["x", "u"], ["z"])
    part = inspected(matmul_file(tmp_path / "behind.onnx", [behind, second, PRODUCT], {"v": _W, "u": _W}))
    assert [left.reason for left in part.uncounted] == ["it is behind Unpack of com.microsoft"]


def test_where_nothing_can_be_counted_it_is_refused(tmp_path: Path) -> None:
    """inspect: "0.00 % of 0", exit 0."""
    identity = helper.make_node("Identity", ["h"], ["y"])
    only = matmul_file(tmp_path / "net.onnx", [NBITS, identity], PACKED)
    with pytest.raises(UsageError, match="MatMulNBits of com.microsoft are not read"):
        inspect(only)


@pytest.mark.runtime
def test_a_bundle_in_a_runtimes_own_form_is_not_a_broken_onnx_file(tmp_path: Path) -> None:
    """inspect: the OpenVINO .xml of a bundle "can't be read as ONNX ... it may be cut off"."""
    np.savez(tmp_path / "training.npz", x=X, y=np.zeros(len(X), dtype=np.int64))
    target = quick_target(tmp_path / "openvino", "openvino", ("[1, 16]", "[16]"))
    written = export(
        build_pair(tmp_path / "pair"), target, precision="int8", calibrate=str(tmp_path / "training.npz"),
        out=tmp_path / "bundles", budget=1,
    )  # fmt: skip
    contents = inspect(written.path)
    assert [left.reason[:4] for part in contents.parts for left in part.uncounted] == [".xml"] * len(contents.parts)
    assert "no weights that can be counted" in document(contents).headline
    assert "0.00 %" not in text(contents)
