"""Which layers a graph becomes, and that those compute what it says, as the reference computes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from onnx import TensorProto, numpy_helper

from acdc_export.errors import GraphError
from acdc_export.native import reference
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layers import Network, Product

from .networks import Net, parity, run
from .strategies import networks

FAST = settings(
    derandomize=True, database=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
)


def fused(model: onnx.ModelProto) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        return fuse(read(Path(folder) / "model.onnx"))


def kinds(network: Network) -> list[str]:
    return [type(layer).__name__ for layer in network.layers]


def check(net: Net, *expected: str, integer: tuple[str, ...] = ()) -> None:
    """A network becomes these layers in FP32, and those in INT8; each computes what ONNX Runtime does."""
    x = net.samples(3)
    network = fused(net.model())
    assert kinds(network) == list(expected)
    for name, values in zip(net.outputs, run(net.model(), x), strict=True):
        assert parity(reference.run(network, x)[name], values) < 1e-5
    network = fused(net.quantized())
    assert kinds(network) == list(integer)
    levels(net, network)


def levels(net: Net, network: Network) -> None:
    """An INT8 network is as ONNX Runtime computes the graph: nearly all within a level, where it rounds otherwise."""
    x = net.samples(3)
    computed, ranges = reference.run(network, x), net.ranges(5)
    step = max((high - low) / 255 for low, high in ranges.values())
    for name, values in zip(net.outputs, run(net.quantized(), x), strict=True):
        difference = np.abs(computed[name] - values) / step
        assert (difference < 1.1).mean() > 0.95, name
        assert difference.max() < 3, name


@settings(FAST, max_examples=200)
@given(networks(8))
def test_random_networks(net: Net) -> None:
    x = net.samples(2)
    computed = reference.run(fused(net.model()), x)
    for name, values in zip(net.outputs, run(net.model(), x), strict=True):
        assert computed[name].shape == values.shape
        assert parity(computed[name], values) < 1e-5


@settings(FAST, max_examples=200)
@given(networks(2))
def test_random_integer_networks(net: Net) -> None:
    levels(net, fused(net.quantized()))


# -------------------------------------------------------------------------------------------------- pieces of networks


def one(make: Callable[[Net], str], *shapes: tuple[int, ...]) -> Net:
    """A network whose last tensor is a point, and its output."""
    net = Net(*(shapes or ((6, 9, 9),)))
    net.outputs.append(net.function(net.point(make(net)), "Identity"))
    return net


def test_what_follows_a_convolution_is_in_its_loop() -> None:
    check(
        one(lambda net: net.function(net.batch_norm(net.conv("x0", 8)), "Relu")),
        "Product", "Function", integer=("Quantize", "Product", "Dequantize", "Function"),
    )  # fmt: skip
    check(
        one(lambda net: net.clip(net.per_channel("Add", net.per_channel("Mul", net.conv("x0", 8))), 0.0, 6.0)),
        "Product", "Function", integer=("Quantize", "Product", "Dequantize", "Function"),
    )  # fmt: skip


def test_a_residual_is_in_the_loop_of_the_later_convolution() -> None:
    def make(net: Net) -> str:
        early = net.point(net.conv("x0", 6))
        return net.function(net.binary("Add", early, net.conv(early, 6)), "Relu")

    check(
        one(make),
        "Product",
        "Product",
        "Function",
        integer=("Quantize", "Product", "Product", "Dequantize", "Function"),
    )


def test_a_residual_that_is_no_point() -> None:
    """It stays FP32, and so does the sum: nothing is rounded that the graph doesn't round."""

    def make(net: Net) -> str:
        early = net.function(net.conv("x0", 6), "Tanh")
        return net.function(net.binary("Add", early, net.conv("x0", 6, 1)), "Relu")

    check(
        one(make), "Product", "Function", "Product", "Function",
        integer=("Quantize", "Product", "Function", "Product", "Binary", "Quantize", "Dequantize", "Function"),
    )  # fmt: skip


def test_a_sum_that_is_an_output_in_fp32() -> None:
    net = Net((6, 9, 9))
    early = net.point(net.function(net.conv("x0", 6), "Relu"))
    net.outputs.append(net.binary("Add", early, net.conv(early, 6)))
    check(net, "Product", "Product", integer=("Quantize", "Product", "Dequantize", "Product", "Binary"))


def test_a_value_that_others_read_is_made() -> None:
    """Neither the ReLU nor the sum may hide what is an output as well."""
    net = Net((6, 9, 9))
    convolved = net.conv("x0", 6)
    net.outputs += [net.function(convolved, "Relu"), convolved]
    check(net, "Product", "Function", integer=("Quantize", "Product", "Function"))
    net = Net((6, 9, 9))
    convolved = net.conv("x0", 6)
    net.outputs += [net.binary("Add", convolved, "x0"), convolved]
    check(net, "Product", "Binary", integer=("Quantize", "Dequantize", "Product", "Binary"))


def test_a_value_that_is_added_to_itself() -> None:
    def make(net: Net) -> str:
        convolved = net.point(net.conv("x0", 6))
        return net.binary("Add", convolved, convolved)

    check(
        one(make), "Product", "Binary", "Function", integer=("Quantize", "Product", "Table", "Dequantize", "Function")
    )


@pytest.mark.parametrize("operator", ["Sigmoid", "HardSwish", "Gelu", "LeakyRelu", "Elu", "Tanh", "Softplus"])
def test_functions_are_tables_in_int8(operator: str) -> None:
    check(
        one(lambda net: net.function(net.point(net.conv("x0", 6)), operator)), "Product", "Function", "Function",
        integer=("Quantize", "Product", "Table", "Dequantize", "Function"),
    )  # fmt: skip


def test_functions_of_several_operators_are_one_table() -> None:
    def gelu(net: Net) -> str:  # as it is exported before opset 20
        x = net.point(net.conv("x0", 6))
        inner = net.function(net.binary("Div", x, net.constant(np.float32(2**0.5))), "Erf")
        shifted = net.binary("Add", inner, net.constant(np.float32(1)))
        return net.binary("Mul", net.binary("Mul", x, shifted), net.constant(np.float32(0.5)))

    net = one(gelu)
    assert kinds(fused(net.quantized())) == ["Quantize", "Product", "Table", "Dequantize", "Function"]
    levels(net, fused(net.quantized()))
    x = net.samples()
    assert parity(reference.run(fused(net.model()), x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-5


def test_silu() -> None:
    def make(net: Net) -> str:
        x = net.point(net.conv("x0", 6))
        return net.binary("Mul", net.function(x, "Sigmoid"), x)

    check(
        one(make), "Product", "Function", "Function", integer=("Quantize", "Product", "Table", "Dequantize", "Function")
    )


def test_a_relu_behind_silu_is_not_forgotten() -> None:
    def make(net: Net) -> str:
        return net.function(net.binary("Mul", "x0", net.function("x0", "Sigmoid")), "Relu")

    check(one(make), "Function", "Binary", "Function", integer=("Quantize", "Table", "Dequantize", "Function"))


def test_squeeze_and_excite() -> None:
    check(
        one(lambda net: net.squeeze_excite("x0")),
        "Pool", "Product", "Product", "Function", "Binary", "Function",
        integer=("Quantize", "Pool", "Product", "Product", "Table", "Binary", "Dequantize", "Function"),
    )  # fmt: skip


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, 2)])
@pytest.mark.parametrize("opset", [13, 22])
def test_a_mean_over_rows_and_columns(keepdims: int, axes: tuple[int, int], opset: int) -> None:
    """Whose axes are an attribute before opset 18, and an input since."""
    net = Net((6, 9, 9))
    if opset < 18:
        mean = net.node("ReduceMean", ["x0"], (6, 1, 1) if keepdims else (6,), axes=axes, keepdims=keepdims)
    else:
        reads = ["x0", net.constant(np.array(axes, np.int64))]
        mean = net.node("ReduceMean", reads, (6, 1, 1) if keepdims else (6,), keepdims=keepdims)
    net.outputs.append(net.gemm(mean if not keepdims else net.flatten(mean), 4))
    model = net.model()
    model.opset_import[0].version = opset
    x = net.samples(2)
    assert parity(reference.run(fused(model), x)[net.outputs[0]], run(model, x)[0]) < 1e-5


@pytest.mark.parametrize("axes", [(1,), (2,), (0, 2, 3), (1, 2, 3)])
def test_other_means_are_refused(axes: tuple[int, ...]) -> None:
    net = Net((6, 9, 9))
    net.outputs.append(net.node("ReduceMean", ["x0", net.constant(np.array(axes, np.int64))], (6,), keepdims=1))
    with pytest.raises(GraphError, match=r"ReduceMean \(ReduceMean_t0\)|mixes them"):
        fused(net.model())


def test_casts() -> None:
    net = Net((6, 9, 9))
    net.outputs.append(net.conv(net.node("Cast", ["x0"], (6, 9, 9), to=TensorProto.FLOAT), 4))
    x = net.samples()
    assert kinds(fused(net.model())) == ["Product"]
    assert parity(reference.run(fused(net.model()), x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-5
    net = Net((6, 9, 9))
    half = net.node("Cast", ["x0"], (6, 9, 9), to=TensorProto.FLOAT16)
    net.outputs.append(net.node("Cast", [half], (6, 9, 9), to=TensorProto.FLOAT))
    with pytest.raises(GraphError, match="FLOAT16"):
        fused(net.model())


def test_half_precision_weights_are_taken() -> None:
    net = Net((6, 9, 9))
    weights = net.constant(net.weights((4, 6, 3, 3)).astype(np.float16))
    cast = net.node("Cast", [weights], (6, 3, 3), to=TensorProto.FLOAT)
    net.outputs.append(net.node("Conv", ["x0", cast], (4, 7, 7)))
    x = net.samples()
    assert parity(reference.run(fused(net.model()), x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-5


def test_padding_before_a_convolution_is_its_own() -> None:
    net = one(lambda net: net.conv(net.pad("x0", (1, 2), (0, 1)), 4, pads=0))
    network = fused(net.model())
    assert kinds(network) == ["Product", "Function"]
    product = network.layers[0]
    assert isinstance(product, Product)
    assert product.window.pads == (1, 2, 0, 1)
    x = net.samples()
    assert parity(reference.run(network, x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-5


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_padding_that_onnx_computes(mode: str, strides: tuple[int, int]) -> None:
    net = Net((6, 10, 11))
    weights = net.constant(net.weights((4, 6, 4, 3)))
    net.outputs.append(net.node("Conv", ["x0", weights], (4, 10, 11), auto_pad=mode, strides=strides))
    net.outputs.append(net.node("MaxPool", ["x0"], (6, 10, 11), auto_pad=mode, strides=strides, kernel_shape=[3, 2]))
    net.outputs.append(
        net.node("AveragePool", ["x0"], (6, 10, 11), auto_pad=mode, strides=strides, kernel_shape=[3, 2])
    )
    model = net.model()
    for value in model.graph.output:
        for dimension in value.type.tensor_type.shape.dim[2:]:
            dimension.Clear()
    x = net.samples()
    computed = reference.run(fused(model), x)
    for name, values in zip(net.outputs, run(model, x), strict=True):
        assert computed[name].shape == values.shape
        assert parity(computed[name], values) < 1e-5


@pytest.mark.parametrize(("operator", "swapped"), [("Sub", True), ("Sub", False), ("Div", False), ("Mul", True)])
def test_constants_at_either_side(operator: str, swapped: bool) -> None:
    def make(net: Net) -> str:
        values = net.constant(net.random.uniform(0.5, 2, (6, 1, 1)).astype(np.float32))
        return net.node(operator, [values, "x0"] if swapped else ["x0", values], (6, 9, 9))

    check(one(make), "Affine", "Function", integer=("Quantize", "Affine", "Dequantize", "Function"))


def test_a_constant_divided_by_a_tensor_is_refused() -> None:
    net = Net((6, 9, 9))
    net.outputs.append(net.node("Div", [net.constant(np.float32(1)), "x0"], (6, 9, 9)))
    with pytest.raises(GraphError, match=r"Div \(Div_t0\)"):
        fused(net.model())


def test_negative_scales_of_a_batch_norm_and_dead_channels() -> None:
    def make(net: Net) -> str:
        weights = net.weights((8, 6, 3, 3))
        weights[:2] = 0
        y = net.batch_norm(net.conv("x0", 8, weights=weights))
        scale = net.constants[net.nodes[-1].input[1]]
        scale[1:4] *= -1
        scale[4] = 0
        return y

    net = one(make)
    assert kinds(fused(net.quantized())) == ["Quantize", "Product", "Dequantize", "Function"]
    levels(net, fused(net.quantized()))


def test_a_bias_that_is_large_beside_its_weights() -> None:
    def make(net: Net) -> str:
        weights = net.weights((8, 6, 3, 3)) * 1e-9
        return net.conv("x0", 8, weights=weights.astype(np.float32))

    levels(one(make), fused(one(make).quantized()))


def test_the_bias_of_a_channel_without_weights_is_exact() -> None:
    """Its scale means nothing, and may be coarse: here a step would be 200 levels of the output."""
    net = one(lambda net: net.conv("x0", 4, 1, weights=np.zeros((4, 6, 1, 1), np.float32)))
    model = net.quantized()
    for tensor in model.graph.initializer:
        if tensor.name == "w0_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.full(4, 100, np.float32), tensor.name))
    x = net.samples()
    values = reference.run(fused(model), x)[net.outputs[0]]
    np.testing.assert_array_equal(values, run(model, x)[0])
    assert np.unique(values).size == 4


def test_transposed_weights_are_quantized_along_their_outputs() -> None:
    net = Net((40,))
    net.outputs.append(net.gemm("x0", 7, transposed=False))
    assert kinds(fused(net.quantized())) == ["Quantize", "Product"]
    levels(net, fused(net.quantized()))
    product = fused(net.quantized()).layers[1]
    assert isinstance(product, Product)
    assert product.weights.dtype == np.int8
    assert product.weights.shape == (7, 40, 1, 1)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_products_with_matrices(operator: str) -> None:
    net = Net((40,))
    weights = net.constant(net.weights((40, 7)))
    y = net.node(operator, ["x0", weights], (7,), **({"alpha": 0.5} if operator == "Gemm" else {}))
    net.outputs.append(net.node("Add", [y, net.constant(net.random.normal(size=7).astype(np.float32))], (7,)))
    x = net.samples(3)
    assert kinds(fused(net.model())) == ["Product"]
    assert parity(reference.run(fused(net.model()), x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-5


def test_sums_that_would_not_fit_into_int32_stay_fp32() -> None:
    net = Net((70_000,))
    net.outputs.append(net.gemm("x0", 2))
    net.constants["w0"][:] = np.float32(0.01)
    (_, _, product) = fused(net.quantized()).layers
    assert isinstance(product, Product)
    assert product.weights.dtype == np.float32
    levels(net, fused(net.quantized()))


def test_a_quantized_input_that_is_only_rounded() -> None:
    net = Net((6, 9, 9))
    net.outputs.append(net.function("x0", "Identity"))
    check(net, "Function", integer=("Quantize", "Dequantize", "Function"))


def test_names_that_are_left_out_and_shared() -> None:
    """Nodes without names get some; equal names of nodes do no harm."""
    net = one(lambda net: net.function(net.conv(net.function("x0", "Sigmoid"), 4), "Tanh"))
    for node in net.nodes:
        node.name = ""
    assert [layer.name for layer in fused(net.model()).layers][:2] == ["Sigmoid_0", "Conv_1"]
    x = net.samples()
    expected = run(net.model(), x)[0]
    for node in net.nodes:
        node.name = "same"
    assert parity(reference.run(fused(net.model()), x)[net.outputs[0]], expected) < 1e-5
