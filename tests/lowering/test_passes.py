"""Every pass computes what the graph computed before it, and keeps its zeros: on real graphs, in a real runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from acdc_export import config, lowering
from acdc_export.errors import GraphError

from ..conftest import CHANNELS, SIDE, logits, network, weights


def lowered(model: onnx.ModelProto, folder: Path, *passes: str, batch_size: int = 3, **options: int) -> onnx.ModelProto:
    onnx.save(model, folder / "in.onnx")
    lowering.transform(folder / "in.onnx", folder / "out.onnx", passes=passes, batch_size=batch_size, **options)
    return onnx.load(folder / "out.onnx")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def same(before: onnx.ModelProto, after: onnx.ModelProto, shape: tuple[int, ...] = (3, 1, SIDE, SIDE)) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(logits(after, x), logits(before, x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network(weights(1, 0.9))


@pytest.mark.parametrize("name", config.pass_names())
def test_each_pass_alone(model: onnx.ModelProto, tmp_path: Path, name: str) -> None:
    same(model, lowered(model, tmp_path, name))


def test_all_that_deepsparse_needs(model: onnx.ModelProto, tmp_path: Path) -> None:
    target = config.load_target("cpu").graph
    after = lowered(model, tmp_path, *target.passes, ir_version=target.ir_version, opset=target.opset)  # type: ignore[arg-type]
    assert after.ir_version == 8
    assert operators(after) == ["Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert [dim.dim_value for dim in after.graph.input[0].type.tensor_type.shape.dim] == [3, 1, SIDE, SIDE]
    assert [dim.dim_value for dim in after.graph.output[0].type.tensor_type.shape.dim] == [3, 10]
    same(model, after)


def mean_model(axes: list[int], *, keepdims: int, opset: int) -> onnx.ModelProto:
    shape = ["batch", 4, 5, 6]
    given = {"axes": axes} if opset < 18 else {}
    inputs, initializers = ["x"], []
    if opset >= 18:
        inputs.append("axes")
        initializers.append(numpy_helper.from_array(np.array(axes, dtype=np.int64), "axes"))
    left = [dim for at, dim in enumerate(shape) if at not in [axis % 4 for axis in axes]]
    kept = [1 if at in [axis % 4 for axis in axes] else dim for at, dim in enumerate(shape)]
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, kept if keepdims else left)
    node = helper.make_node("ReduceMean", inputs, ["logits"], keepdims=keepdims, **given)
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    relu = helper.make_node("Relu", ["input"], ["x"])
    made = helper.make_graph([relu, node], "g", [source], [result], initializers)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    )


@given(
    axes=st.lists(st.sampled_from([-3, -2, -1, 1, 2, 3]), min_size=1, max_size=3, unique_by=lambda axis: axis % 4),
    keepdims=st.integers(0, 1),
    opset=st.sampled_from([13, 17, 18]),
)
@settings(max_examples=40, deadline=None)
def test_only_the_mean_over_height_and_width_is_pooled(
    tmp_path_factory: pytest.TempPathFactory, axes: list[int], keepdims: int, opset: int
) -> None:
    before = mean_model(axes, keepdims=keepdims, opset=opset)
    after = lowered(before, tmp_path_factory.mktemp("mean"), "global_average_pool")
    spatial = {axis % 4 for axis in axes} == {2, 3}
    assert ("GlobalAveragePool" in operators(after)) == spatial
    assert ("ReduceMean" in operators(after)) != spatial
    assert after.graph.output[0].name == "logits"
    same(before, after, (3, 4, 5, 6))


@given(seed=st.integers(0, 2**16), sparsity=st.sampled_from([0.5, 0.9, 0.98]), bias=st.booleans())
@settings(max_examples=25, deadline=None)
def test_folding_a_batch_norm_keeps_every_zero(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sparsity: float, bias: bool
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight[np.abs(weight) < np.quantile(np.abs(weight), sparsity)] = 0
    arrays = {"weight": weight, "gamma": random.normal(size=6), "beta": random.normal(size=6)}
    arrays |= {"mean": random.normal(size=6), "var": random.uniform(0.2, 3, size=6)}
    arrays |= {"bias": random.normal(size=6)} if bias else {}
    nodes = [
        helper.make_node("Conv", ["input", "weight", *(["bias"] if bias else [])], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6, SIDE - 2, SIDE - 2])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    before = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    after = lowered(before, tmp_path_factory.mktemp("bn"), "fold_batchnorm")
    assert operators(after) == ["Conv"]
    (found,) = lowering.audit(ir.from_proto(after))
    assert found.zeros == (weight == 0).sum()
    same(before, after, (3, 4, SIDE, SIDE))


def test_unused_opsets_go(model: onnx.ModelProto, tmp_path: Path) -> None:
    with_more = onnx.ModelProto()
    with_more.CopyFrom(model)
    with_more.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)])
    after = lowered(with_more, tmp_path, "drop_unused_opsets")
    assert [item.domain for item in after.opset_import] == [""]


def test_the_canonical_file_stays_untouched(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "in.onnx")
    before = (tmp_path / "in.onnx").read_bytes()
    lowering.transform(tmp_path / "in.onnx", tmp_path / "out.onnx", passes=tuple(config.pass_names()), batch_size=1)
    assert (tmp_path / "in.onnx").read_bytes() == before


def test_paths_of_the_exporting_machine_are_left_out(model: onnx.ModelProto, tmp_path: Path) -> None:
    with_path = onnx.ModelProto()
    with_path.CopyFrom(model)
    entry = with_path.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack_trace", "/home/somebody/secret.py"
    lowered(with_path, tmp_path)
    assert b"somebody" not in (tmp_path / "out.onnx").read_bytes()


def test_a_dynamic_dimension_beside_the_batch_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    dynamic = onnx.ModelProto()
    dynamic.CopyFrom(model)
    dynamic.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    with pytest.raises(GraphError, match="Dimension 3 of input input is dynamic"):
        lowered(dynamic, tmp_path, "static_batch")


def test_a_newer_opset_than_the_target_takes_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="uses opset 18; the target takes 17"):
        lowered(model, tmp_path, opset=17)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a\x12"])
def test_what_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.onnx").write_bytes(content)
    with pytest.raises(GraphError, match="in.onnx"):
        lowering.transform(tmp_path / "in.onnx", tmp_path / "out.onnx", passes=(), batch_size=1)


def test_a_pass_that_loses_a_zero_is_caught(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acdc_export.lowering.passes import drop_unused_opsets

    def clumsy(model: ir.Model, *, batch_size: int) -> None:
        value = model.graph.initializers["conv2.weight"]
        array = value.const_value.numpy().copy()
        array[array == 0] = 1e-9
        value.const_value = ir.tensor(array)

    monkeypatch.setattr(drop_unused_opsets, "run", clumsy)
    with pytest.raises(GraphError, match=r"drop_unused_opsets lost \d+ zeros of the weight conv2.weight"):
        lowered(model, tmp_path, "drop_unused_opsets")


def test_steps_count_the_zeros_after_each_pass(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "in.onnx")
    found = lowering.transform(
        tmp_path / "in.onnx", tmp_path / "out.onnx", passes=tuple(config.pass_names()), batch_size=1
    )
    expected = sum(int((array == 0).sum()) for array in weights(1, 0.9).values() if array.ndim > 1)
    assert [step.name for step in found.steps] == ["canonical", *config.pass_names()]
    assert {step.zeros for step in found.steps} == {expected}
    assert found.weights[1].shape == (CHANNELS, CHANNELS, 3, 3)
