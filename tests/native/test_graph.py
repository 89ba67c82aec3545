"""What can't be compiled is told by name and place. No file makes the compiler hang, crash, or take all memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acdc_export.errors import GraphError
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layers import Network
from acdc_export.native.layout import lay_out

from .networks import Net


def network(model: onnx.ModelProto, folder: Path) -> Network:
    onnx.save(model, folder / "model.onnx")
    fused = fuse(read(folder / "model.onnx"))
    lay_out(fused)
    return fused


def refusal(model: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(GraphError) as raised:
        network(model, folder)
    assert raised.value.remedy
    assert "\n" not in raised.value.message
    return raised.value.message


def small(*, outputs: int = 4) -> Net:
    net = Net((3, 6, 6))
    net.outputs.append(net.function(net.conv("x0", outputs), "Relu"))
    return net


def test_a_dynamic_shape_is_told_with_its_place(tmp_path: Path) -> None:
    model = small().model()
    model.graph.input[0].type.tensor_type.shape.dim[3].ClearField("dim_value")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    assert "input x0 has a dynamic shape: dimension 3 (width)" in refusal(model, tmp_path)


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    model = small().model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "Field 'shape'" in refusal(model, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    net = small()
    net.constants["w0"][1, 2, 0, 0] = value
    assert "the constant w0 has values that are not finite" in refusal(net.model(), tmp_path)


def test_what_is_not_finite_once_it_is_folded(tmp_path: Path) -> None:
    net = Net((3, 6, 6))
    net.outputs.append(net.batch_norm(net.conv("x0", 4)))
    net.constants["c5"][:] = -1  # variances
    assert "Conv (Conv_t0) has weights that are not finite" in refusal(net.model(), tmp_path)


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    net = small()
    net.outputs = [net.function(net.outputs[0], "Sinh")]
    assert "The operator Sinh (Sinh_t2)" in refusal(net.model(), tmp_path)


def test_an_unknown_operator_in_an_integer_network(tmp_path: Path) -> None:
    net = small()
    net.point(net.outputs[0])
    net.outputs = [net.function(net.point(net.function(net.outputs[0], "Sinh")), "Identity")]
    assert "The operator Sinh (Sinh_t2)" in refusal(net.quantized(), tmp_path)


def test_an_unknown_operator_that_nobody_needs_is_left_out(tmp_path: Path) -> None:
    net = small()
    net.function(net.outputs[0], "Sinh")
    assert {layer.operator for layer in network(net.model(), tmp_path).layers} == {"Conv"}


def test_an_operator_of_another_domain(tmp_path: Path) -> None:
    net = small()
    net.outputs = [net.function(net.outputs[0], "Magic", domain="com.microsoft")]
    model = net.model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "com.microsoft.Magic" in refusal(model, tmp_path)


def test_weights_that_are_no_constants(tmp_path: Path) -> None:
    net = Net((4,), (4,))
    net.outputs.append(net.node("MatMul", ["x0", "x1"], (4,)))
    assert "MatMul" in refusal(net.model(), tmp_path)


def test_another_type_of_input_and_of_output(tmp_path: Path) -> None:
    model = small().model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    assert "x0 is INT64" in refusal(model, tmp_path)
    model = small().quantized()
    model.graph.output[0].name = "x0_u8"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert "x0_u8 is UINT8" in refusal(model, tmp_path)


@pytest.mark.parametrize("scale", [0.0, -0.5, np.inf, np.nan])
def test_a_scale_that_can_not_be(scale: float, tmp_path: Path) -> None:
    model = small().quantized()
    for tensor in model.graph.initializer:
        if tensor.name == "x0_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(scale), "x0_scale"))
    assert "scale" in refusal(model, tmp_path)


def test_signed_activations(tmp_path: Path) -> None:
    model = small().quantized()
    for tensor in model.graph.initializer:
        if tensor.name == "x0_zero":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), "x0_zero"))
    assert "DequantizeLinear (x0_d) isn't uint8" in refusal(model, tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="No such file"):
        read(tmp_path / "missing.onnx")
    for content in (b"", b"\x00" * 100, b"<html>", small().model().SerializeToString()[:-40]):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(GraphError):
            read(tmp_path / "model.onnx")


def test_weights_that_are_shorter_than_their_shape(tmp_path: Path) -> None:
    model = small().model()
    for tensor in model.graph.initializer:
        if tensor.name == "w0":
            tensor.raw_data = tensor.raw_data[:-4]
    refusal(model, tmp_path)


def test_an_old_opset(tmp_path: Path) -> None:
    model = small().model()
    model.opset_import[0].version = 9
    assert "opset 9 is older than 11" in refusal(model, tmp_path)


def test_control_flow(tmp_path: Path) -> None:
    """A loop of constants would be computed when the file is read, and need not end."""
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("condition", "carried")],
        "body",
        [
            helper.make_tensor_value_info("at", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, [1]),
        ],
    )
    net = small()
    count, start = net.constant(np.int64(2**60)), net.constant(np.ones(1, np.float32))
    looped = net.node("Loop", [count, net.constant(np.array(True)), start], (1,), body=body)
    net.outputs = [net.node("Add", [net.outputs[0], looped], (4, 6, 6))]
    assert "The operator Loop (Loop_t2)" in refusal(net.model(), tmp_path)


@pytest.mark.parametrize("how", ["ConstantOfShape", "Expand", "Tile", "computed"])
def test_constants_that_would_take_all_memory(how: str, tmp_path: Path) -> None:
    net = small()
    one, shape = np.ones((1, 1, 1, 1), np.float32), net.constant(np.array([1, 2**14, 2**14, 2**14], np.int64))
    if how == "computed":  # from a shape that is itself computed
        shape = net.node("Mul", [shape, net.constant(np.ones(4, np.int64))], (4,))
    reads = [shape] if how in ("ConstantOfShape", "computed") else [net.constant(one), shape]
    operator = "ConstantOfShape" if how == "computed" else how
    value = {"value": numpy_helper.from_array(one.reshape(1))} if operator == "ConstantOfShape" else {}
    large = net.node(operator, reads, (2**14,) * 3, **value)
    mean = net.node("ReduceMax", [large], (1,), keepdims=0)
    net.outputs = [net.node("Add", [net.outputs[0], mean], (4, 6, 6))]
    refusal(net.model(), tmp_path)


@pytest.mark.parametrize("side", [2**14, 2**20, 2**40])
def test_activations_that_would_take_all_memory(side: int, tmp_path: Path) -> None:
    net = Net((3, side, side))
    net.outputs.append(net.function(net.function("x0", "Sigmoid"), "Tanh"))
    assert "values for a sample" in refusal(net.model(), tmp_path) or "GiB" in refusal(net.model(), tmp_path)


def test_a_deep_network(tmp_path: Path) -> None:
    net = Net((2, 3, 3))
    x = "x0"
    for at in range(3000):
        x = net.function(x, ("Relu", "Sigmoid", "Identity")[at % 3])
    net.outputs.append(x)
    assert len(network(net.model(), tmp_path).layers) >= 2000


def test_a_deep_integer_network(tmp_path: Path) -> None:
    net = Net((2, 3, 3))
    x = "x0"
    for at in range(1500):
        x = net.function(x, ("Relu", "Sigmoid")[at % 2])
    net.outputs.append(net.function(net.point(x), "Identity"))
    assert {type(layer).__name__ for layer in network(net.quantized(), tmp_path).layers} == {
        "Quantize", "Table", "Dequantize", "Function"
    }  # fmt: skip


def test_shapes_that_are_computed_from_the_input(tmp_path: Path) -> None:
    """As torch exports x.view(x.size(0), -1)."""
    net = small()
    shape = net.node("Shape", net.outputs, (4,))
    first = net.node("Gather", [shape, net.constant(np.array([0], np.int64))], (1,))
    target = net.node("Concat", [first, net.constant(np.array([-1], np.int64))], (2,), axis=0)
    flat = net.node("Reshape", [net.outputs[0], target], (4 * 36,))
    net.outputs = [net.gemm(flat, 5)]
    assert [layer.operator for layer in network(net.model(), tmp_path).layers] == ["Conv", "Reshape", "Gemm"]


def test_pools_that_round_up_before_opset_22(tmp_path: Path) -> None:
    """Where shape inference counts a window that begins behind the tensor, runtimes leave it out."""
    net = Net((1, 5, 5))
    pooled = net.pool(net.pool("x0", "MaxPool", 1, 2, ceil_mode=1), "AveragePool", 1, 2, ceil_mode=1)
    net.outputs.append(net.function(pooled, "Identity"))
    model = net.model()
    model.opset_import[0].version = 13
    tensors = network(model, tmp_path).tensors
    assert [tensors[name].shape for name in ("t0", "t1")] == [(1, 3, 3), (1, 2, 2)]
    net = Net((1, 4, 4))
    net.outputs.append(net.pool(net.pool("x0", "MaxPool", 1, 3, ceil_mode=1), "MaxPool", 1, 2, ceil_mode=1))
    model = net.model()
    model.opset_import[0].version = 13
    tensors = network(model, tmp_path).tensors
    assert [tensors[name].shape for name in ("t0", "t1")] == [(1, 2, 2), (1, 1, 1)]
