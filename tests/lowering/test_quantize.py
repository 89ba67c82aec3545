"""Quantization keeps zeros, and what the network computes: each step by itself, and all of them on a small network."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from acdc_export import lowering
from acdc_export.config import load_target
from acdc_export.engines import Environment, InstalledTarget, ensure, open_engine, status
from acdc_export.errors import CalibrationError, GraphError
from acdc_export.lowering import Deployment, QuantizationInputs, audit, deployment, load, quantize
from acdc_export.lowering.quantize import (
    Calibrated,
    Calibration,
    Quantization,
    Range,
    Watched,
    calibrate,
    dequantized,
    equalize,
    worthwhile,
)
from acdc_export.lowering.quantize.calibration import DEAD, Arrays, Method

SIDE = 6
SCHEMES = ("convinteger", "qdq", "full_integer")
TARGET = ("fold_batchnorm", "global_average_pool", "static_batch")


def run(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def samples(rows: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, SIDE, SIDE)).astype(np.float32)


def write(
    path: Path, seed: int = 0, groups: int = 1, flat: bool = False, uneven: float = 1.0, around: bool = True
) -> Path:
    """A convolution, a depthwise or plain one `around` which its input is led, and a head; 80 % zeros in the second.

    `uneven` is how far the channels of the first weight differ in size; `flat` leaves height and width to the head.
    """
    random = np.random.default_rng(seed)
    first = random.normal(size=(8, 3, 3, 3)) * np.geomspace(1, uneven, 8)[:, None, None, None]
    first[0] = 0  # a channel that was pruned as a whole
    second = random.normal(size=(8, 8 // groups, 3, 3))
    second[random.random(second.shape) < 0.8] = 0
    second[0, 0, 0, 0] = 1.0
    features = 8 * SIDE * SIDE if flat else 8
    arrays = {
        "first": first, "first_bias": random.normal(size=8), "second": second,
        "head": random.normal(size=(5, features)), "head_bias": random.normal(size=5),
    }  # fmt: skip
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = [] if flat else [helper.make_node("GlobalAveragePool", ["sum"], ["pooled"])]
    nodes = [
        helper.make_node("Conv", ["x", "first", "first_bias"], ["a"], **pads),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], group=groups, **pads),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Add", ["d", "b"], ["sum"]) if around else helper.make_node("Identity", ["d"], ["sum"]),
        *pool,
        helper.make_node("Flatten", ["sum" if flat else "pooled"], ["e"]),
        helper.make_node("Gemm", ["e", "head", "head_bias"], ["logits"], transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def quantized(
    source: Path,
    folder: Path,
    keep: tuple[str, ...] = (),
    method: Method = "mse",
    inputs: Iterable[np.ndarray] | None = None,
) -> Quantization:
    quantize.fold(source, folder / "prepared.onnx")
    watched = quantize.instrument(folder / "prepared.onnx", folder / "instrumented.onnx", (), SCHEMES)
    batches = [{"x": x} for x in inputs or (samples(8, seed) for seed in range(4))]
    found = calibrate(lambda inputs: run(folder / "instrumented.onnx", inputs["x"]), batches, watched, method)
    return Quantization(Calibrated(folder / "prepared.onnx", found), "convinteger", keep)


def lowered(source: Path, folder: Path, quantization: Quantization | None) -> lowering.TransformedGraph:
    return lowering.transform(source, folder / "out.onnx", passes=TARGET, batch_size=4, quantization=quantization)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def off(source: Path, done: lowering.TransformedGraph, x: np.ndarray) -> float:
    """How far integers, computed exactly, are from the floats: at most, as a share of the largest output."""
    path = done.path.with_name("exact.onnx")
    dequantized.write(done.path, path)
    wanted, found = run(source, x)["logits"], run(path, x)["logits"]
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# ------------------------------------------------------------------------------------------------ equalization


@given(seed=st.integers(0, 99), groups=st.sampled_from([1, 2, 8]), flat=st.booleans(), uneven=st.sampled_from([1, 300]))
@settings(max_examples=25, deadline=None)
def test_equalizing_changes_neither_outputs_nor_zeros(
    tmp_path_factory: pytest.TempPathFactory, seed: int, groups: int, flat: bool, uneven: int
) -> None:
    folder = tmp_path_factory.mktemp("equalize")
    source = write(folder / "in.onnx", seed, groups, flat, uneven, around=False)
    assert equalize.run(load(source)) == 2
    quantize.fold(source, folder / "out.onnx")
    before, after = run(source, samples())["logits"], run(folder / "out.onnx", samples())["logits"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    assert [weight.zeros for weight in audit(load(folder / "out.onnx"))] == [
        weight.zeros for weight in audit(load(source))
    ]


def chain(path: Path) -> Path:
    """Two convolutions behind each other, with channels of very unlike sizes between them."""
    random = np.random.default_rng(0)
    sizes = np.geomspace(1, 1000, 8)[:, None, None, None]
    arrays = {
        "first": random.normal(size=(8, 3, 3, 3)) * sizes,
        "second": random.normal(size=(4, 8, 1, 1)) / sizes.reshape(1, 8, 1, 1),
    }
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["logits"]),
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, SIDE - 2, SIDE - 2])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_channels_between_two_layers_come_to_like_sizes(tmp_path: Path) -> None:
    model = load(chain(tmp_path / "in.onnx"))
    assert equalize.run(model) == 1
    first, second = (model.graph.initializers[name].const_value.numpy() for name in ("first", "second"))  # type: ignore[union-attr]
    rows, columns = np.abs(first).max((1, 2, 3)), np.abs(second).max((0, 2, 3))
    np.testing.assert_allclose(rows, columns, rtol=0.02)
    assert rows.max() / rows.min() < 5  # of 1000


def test_layers_around_which_something_is_led_are_no_pair(tmp_path: Path) -> None:
    assert equalize.run(load(write(tmp_path / "in.onnx"))) == 0


# ------------------------------------------------------------------------------------------------ calibration


def of(batches: Iterable[np.ndarray], method: Method = "min-max") -> Calibration:
    """Calibrate a network whose one activation is its input."""
    found: list[Arrays] = [{"x": np.asarray(batch, dtype=np.float32)} for batch in batches]
    return calibrate(lambda inputs: {}, found, {"x": Watched(1, ("w",))}, method)


def test_ranges_hold_zero_and_all_values() -> None:
    found = of([[[1.0, 5.0]], [[2.0, 9.0]]])
    assert found.ranges == {"x": Range(0.0, 9.0)}
    assert found.samples == 2
    np.testing.assert_allclose(found.means["x"], [1.5, 7.0])


def test_means_are_by_channel() -> None:
    x = samples(6)
    np.testing.assert_allclose(of([x[:2], x[2:]]).means["x"], x.mean((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize(("method", "most"), [("percentile", 10.0), ("mse", 95.0)])
def test_a_single_far_value_is_left_out_or_drawn_in(method: Method, most: float) -> None:
    x = np.random.default_rng(0).normal(size=(100, 1000))
    x[0, 0] = 100.0
    found = of([x], method).ranges["x"]
    assert found.high < most
    assert found.low < -2.0


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30))
@example([0.0, 1.4307257320756382e-42])  # bins that FP32 can't tell apart
@settings(max_examples=60, deadline=None)
def test_every_method_gives_a_range_around_zero(values: list[float]) -> None:
    if min(values) == max(values):
        return
    for method in ("min-max", "percentile", "mse"):
        found = of([np.array([values])], method).ranges["x"]  # type: ignore[arg-type]
        if found == DEAD:  # of values too small for FP32 to have a scale for them
            assert max(values) - min(values) < 1e-35
            continue
        assert min(0.0, min(values)) <= found.low <= 0.0 <= found.high <= max(0.0, max(values)) + 1e-3
        assert found.low < found.high


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no samples to calibrate with"),
        ([[[1.0, np.nan]]], "x is not finite"),
    ],
)
def test_samples_of_which_no_range_comes(batches: list[np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        of(batches)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize(
    ("value", "limits"), [(2.0, Range(0.0, 2.0)), (-0.5, Range(-0.5, 0.0)), (0.0, DEAD), (1e-42, DEAD)]
)
def test_an_activation_of_a_single_value_has_the_range_from_zero_to_it(
    method: Method, value: float, limits: Range
) -> None:
    found = of([np.full((2, 3), value), np.full((2, 3), value)], method)
    assert (found.ranges["x"].low, found.ranges["x"].high) == pytest.approx((limits.low, limits.high))
    assert found.unvaried == pytest.approx({"w": value})
    assert of([[[0.0, 1.0]]]).unvaried == {}


def test_an_activation_that_is_not_finite_names_the_layers_that_can_stay_in_fp32() -> None:
    with pytest.raises(CalibrationError) as caught:
        of([[[1.0, np.inf]]])
    assert "--keep-fp32 w" in caught.value.remedy


def test_layers_that_stay_in_fp32_ask_nothing_of_calibration(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx")
    watched = quantize.instrument(source, tmp_path / "all.onnx")
    assert {name: activation.layers for name, activation in watched.items()} == {
        "x": ("first",),
        "b": ("second",),
        "e": ("head",),
    }
    assert set(quantize.instrument(source, tmp_path / "some.onnx", keep=("first", "head"))) == {"b"}
    assert quantize.instrument(source, tmp_path / "none.onnx", keep=("first", "second", "head")) == {}


# ------------------------------------------------------------------------------------------------ integers


DEAD_WAYS = {
    "a ReLU that never fires": {"first": 0.0, "first_bias": -1.0},
    "a layer of zeros, with a bias": {"second": 0.0},
    "a layer of zeros behind which all is constant": {"first": 0.0, "first_bias": 0.7, "second": 0.0},
    "the head is zero": {"head": 0.0},
    "all of it": {"first": 0.0, "first_bias": 0.0, "second": 0.0, "head": 0.0},
    "weights that FP32 has no scale for": {"head": 1e-40},
    "weights that hardly count beside the bias": {"head": 1e-12},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", DEAD_WAYS)
def test_what_is_dead_becomes_integers_all_the_same(tmp_path: Path, scheme: str, way: str) -> None:
    """Against FP32: biases still come through, and nothing is divided by the scale of nothing."""
    source = write(tmp_path / "in.onnx")
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name in DEAD_WAYS[way]:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, DEAD_WAYS[way][tensor.name]), tensor.name))
    onnx.save(model, source)
    done = lowered(source, tmp_path, replace(quantized(source, tmp_path), scheme=scheme))
    assert len(done.weights) == 3
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(done.path).graph.initializer}
    scales = [array for name, array in stored.items() if "scale" in name]
    assert all((array >= np.finfo(np.float32).tiny).all() and np.isfinite(array).all() for array in scales)
    assert off(source, done, samples(4, seed=9)) < 0.02
    assert np.abs(run(done.path, samples(4, seed=9))["logits"] - run(source, samples(4, seed=9))["logits"]).max() < 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_may_share_a_weight(tmp_path: Path, scheme: str) -> None:
    source = write(tmp_path / "in.onnx")
    model = onnx.load(source)
    again = helper.make_node("Conv", ["d", "second"], ["again"], pads=[1, 1, 1, 1])
    model.graph.node.insert(4, again)
    model.graph.node[5].input[0] = "again"
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    done = lowered(source, tmp_path, replace(quantized(source, tmp_path), scheme=scheme))
    assert len(done.weights) == 4
    assert off(source, done, samples(4, seed=9)) < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("computed", [False, True])
def test_a_bias_may_be_handed_on_or_computed(tmp_path: Path, scheme: str, computed: bool) -> None:
    """TorchScript's exporter has equal biases once, and Identity between them and their layers."""
    source = write(tmp_path / "in.onnx")
    model = onnx.load(source)
    given = helper.make_node("GlobalMaxPool" if computed else "Identity", ["x" if computed else "head_bias"], ["given"])
    model.graph.node.insert(0, given)
    if computed:
        model.graph.node.insert(1, helper.make_node("ReduceMax", ["given"], ["bias"], keepdims=0))
    model.graph.node[-1].input[2] = "bias" if computed else "given"
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    done = lowered(source, tmp_path, replace(quantized(source, tmp_path), scheme=scheme))
    assert quantize.layer_names(tmp_path / "prepared.onnx") == ["first", "second", *["head"] * (not computed)]
    assert done.weights[2].name == "head" if computed else done.weights[2].name.startswith("head_quantized")
    assert off(source, done, samples(4, seed=9)) < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_of_which_every_layer_stays_in_fp32_is_as_it_was(tmp_path: Path, scheme: str) -> None:
    source = write(tmp_path / "in.onnx")
    kept = quantized(source, tmp_path, keep=("first", "second", "head"))
    done = lowered(source, tmp_path, replace(kept, scheme=scheme))
    assert not {"QuantizeLinear", "ConvInteger", "MatMulInteger"} & set(operators(done.path))
    assert off(source, done, samples()) < 1e-5


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_integers_are_near_the_floats_and_keep_every_zero(tmp_path: Path, groups: int, method: Method) -> None:
    source = write(tmp_path / "in.onnx", groups=groups)
    done = lowered(source, tmp_path, quantized(source, tmp_path, method=method))
    assert operators(done.path).count("ConvInteger") == 2
    assert operators(done.path).count("MatMulInteger") == 1
    assert not {"Conv", "Gemm"} & set(operators(done.path))
    for before, after in zip(done.canonical, done.weights, strict=True):
        assert after.zeros >= before.zeros
        assert after.shape in (before.shape, before.shape[::-1])
    assert off(source, done, samples(4, seed=9)) < 0.05


def test_what_is_led_around_is_read_back_and_not_kept_twice(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx")
    done = lowered(source, tmp_path, quantized(source, tmp_path))
    assert operators(done.path).count("QuantizeLinear") == 3  # x, b and what goes into the head
    assert operators(done.path).count("DequantizeLinear") == 1


def test_layers_that_are_kept_stay_as_they_were(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx")
    done = lowered(source, tmp_path, quantized(source, tmp_path, keep=("second",)))
    assert operators(done.path).count("Conv") == 1
    assert operators(done.path).count("ConvInteger") == 1
    assert quantize.layer_names(done.path) == ["second"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("bits", "greatest"), [(7, 63), (8, 127)])
def test_weights_use_all_of_their_bits_and_no_more(tmp_path: Path, scheme: str, bits: int, greatest: int) -> None:
    source = write(tmp_path / "in.onnx")
    done = lowered(source, tmp_path, replace(quantized(source, tmp_path), scheme=scheme, weight_bits=bits))
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(done.path).graph.initializer}
    weights = [array for array in stored.values() if array.dtype == np.int8 and array.ndim > 1]
    assert [int(np.abs(array.astype(int)).max()) for array in weights] == [greatest] * 3
    assert off(source, done, samples(4, seed=9)) < 0.05


def test_a_layer_right_behind_another(tmp_path: Path) -> None:
    """As in MobileNetV2, with nothing between them; both become integers, the second reads what the first gives now."""
    source = chain(tmp_path / "in.onnx")
    model = onnx.load(source)
    model.graph.node[2].input[0] = "a"
    del model.graph.node[1]
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    done = lowering.transform(
        source, tmp_path / "out.onnx", passes=(), batch_size=4, quantization=quantized(source, tmp_path)
    )
    assert operators(done.path).count("ConvInteger") == 2
    assert off(source, done, samples()) < 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_of_each_output_stays(tmp_path: Path, scheme: str) -> None:
    """A weight with few levels moves the means; the bias takes that back."""
    source = chain(tmp_path / "in.onnx")
    with_means = replace(quantized(source, tmp_path), scheme=scheme)
    calibration = with_means.calibrated.calibration
    without = replace(calibration, means={key: 0 * mean for key, mean in calibration.means.items()})
    x = np.concatenate([samples(8, seed) for seed in range(4)])
    wanted = run(source, x)["logits"].mean((0, 2, 3))
    moved = []
    for quantization in (
        with_means,
        replace(with_means, calibrated=replace(with_means.calibrated, calibration=without)),
    ):
        done = lowering.transform(source, tmp_path / "out.onnx", passes=(), batch_size=4, quantization=quantization)
        dequantized.write(done.path, tmp_path / "exact.onnx")
        moved.append(np.abs(run(tmp_path / "exact.onnx", x)["logits"].mean((0, 2, 3)) - wanted).max())
    assert moved[0] < 0.5 * moved[1]


def test_an_activation_that_was_not_calibrated_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx")
    known = quantized(source, tmp_path)
    calibration = known.calibrated.calibration
    fewer = replace(calibration, ranges={key: one for key, one in calibration.ranges.items() if key != "b"})
    with pytest.raises(GraphError, match="The activation b, which goes into second, was not calibrated"):
        lowered(source, tmp_path, replace(known, calibrated=replace(known.calibrated, calibration=fewer)))


@pytest.mark.parametrize("flat", [False, True])
def test_exact_arithmetic_is_that_of_the_integers(tmp_path: Path, flat: bool) -> None:
    """Against integers in numpy: an engine's own kernels may saturate."""
    source = write(tmp_path / "in.onnx", flat=flat)
    done = lowered(source, tmp_path, quantized(source, tmp_path))
    dequantized.write(done.path, tmp_path / "exact.onnx")
    model = onnx.load(tmp_path / "exact.onnx")
    assert not {"ConvInteger", "MatMulInteger"} & {node.op_type for node in model.graph.node}
    constants = {one.name: numpy_helper.to_array(one) for one in onnx.load(done.path).graph.initializer}
    integers = onnx.load(done.path)
    (product,) = (node for node in integers.graph.node if node.op_type == "MatMulInteger")
    (addition,) = (node for node in integers.graph.node if node.op_type == "Add" and product.output[0] in node.input)
    integers.graph.output.append(helper.make_tensor_value_info(product.input[0], TensorProto.UINT8, None))
    onnx.save(integers, tmp_path / "watched.onnx")
    x = samples(4, seed=5)
    seen = run(tmp_path / "watched.onnx", x)[product.input[0]].astype(np.int64)
    sums = (seen - int(constants[product.input[2]])) @ constants[product.input[1]].astype(np.int64)
    sums = sums + constants[addition.input[1]]
    (scale,) = (array for name, array in constants.items() if name.startswith("head") and name.endswith("rescale"))
    np.testing.assert_allclose(run(tmp_path / "exact.onnx", x)["logits"], sums * scale, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ where integers pay


def stack(path: Path, *layers: tuple[int, int, int, float], around: tuple[str, str] | None = None) -> Path:
    """Convolutions behind each other, each `(channels, size, groups, sparsity)`; a sum `around` the named values."""
    random, nodes, weights, channels, value = np.random.default_rng(0), [], [], 16, "x"
    for at, (width, size, groups, sparsity) in enumerate(layers):
        weight = random.normal(size=(width, channels // groups, size, size)).astype(np.float32)
        weight[random.random(weight.shape) < sparsity] = 0
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        pads = [size // 2] * 4
        nodes.append(helper.make_node("Conv", [value, f"w{at}"], [f"c{at}"], group=groups, pads=pads))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        value, channels = f"r{at}", width
        if around and around[1] == value:
            nodes.append(helper.make_node("Add", [*around], ["sum"]))
            value = "sum"
    nodes[-1].output[0] = "logits"
    made = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", channels, SIDE, SIDE])],
        weights,
    )
    onnx.save(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


DENSE_3X3 = (16, 3, 1, 0.0)  # 72 products for each of the 32 values that it reads and gives
THIN = (16, 1, 1, 0.75)  # 2 of them
DEPTHWISE = (16, 3, 16, 0.0)  # 4.5


@pytest.mark.parametrize(
    ("layers", "in_float"),
    [
        ([DENSE_3X3], []),
        ([THIN], ["w0"]),
        ([DENSE_3X3, THIN, DENSE_3X3], []),  # nothing is converted around the one between
        ([DENSE_3X3, THIN], ["w1"]),  # 4 for each value that only it gives
        ([THIN, DEPTHWISE, DENSE_3X3], ["w0", "w1"]),
        ([DENSE_3X3, DEPTHWISE, DENSE_3X3], ["w1"]),
        ([THIN, THIN, THIN], ["w0", "w1", "w2"]),  # one after the other
    ],
)
def test_integers_where_they_pay(tmp_path: Path, layers: list[Any], in_float: list[str]) -> None:
    assert worthwhile.faster_in_fp32(load(stack(tmp_path / "in.onnx", *layers)), 8) == in_float


@pytest.mark.parametrize(("saturating", "in_fp32"), [(True, ()), (False, ("w0",))])
def test_where_int8_pays_depends_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturating: bool, in_fp32: tuple[str, ...]
) -> None:
    """9 MACs for each value: enough without VNNI, where FP32 is slow beside it. The target says both."""
    source = stack(tmp_path / "in.onnx", (16, 3, 1, 0.87))
    inputs = QuantizationInputs({}, Calibrated(source, Calibration("min-max", 1, {}, {})))
    monkeypatch.setattr(deployment, "saturates", lambda: saturating)
    environment = Environment(Path(sys.executable), {}, tmp_path)
    quantization = inputs.quantization(Deployment(InstalledTarget(load_target("cpu"), environment), "int8"))
    assert quantization is not None
    assert quantization.keep == in_fp32
    assert quantization.weight_bits == (7 if saturating else 8)


def test_what_is_led_around_a_layer_joins_its_neighbours(tmp_path: Path) -> None:
    """The first layer's output goes on to the third, too, around the depthwise one."""
    layers = [DENSE_3X3, DEPTHWISE, THIN, DENSE_3X3]
    assert worthwhile.faster_in_fp32(load(stack(tmp_path / "in.onnx", *layers)), 8) == ["w1", "w2"]
    joined = stack(tmp_path / "in.onnx", *layers, around=("r0", "r1"))
    assert worthwhile.faster_in_fp32(load(joined), 8) == ["w1"]


def test_a_layer_kept_in_float_is_no_neighbour(tmp_path: Path) -> None:
    source = load(stack(tmp_path / "in.onnx", DENSE_3X3, THIN, DENSE_3X3))
    assert worthwhile.faster_in_fp32(source, 8, keep=["w0", "w2"]) == ["w1"]


# ------------------------------------------------------------------------------ integers between Q and DQ, for TensorRT


def between(source: Path, folder: Path, **how: Any) -> Quantization:
    return replace(quantized(source, folder, **how), scheme="qdq")


@given(seed=st.integers(0, 99), groups=st.sampled_from([1, 2, 8]), flat=st.booleans())
@settings(max_examples=15, deadline=None)
def test_between_q_and_dq_all_is_symmetric_and_zeros_stay(
    tmp_path_factory: pytest.TempPathFactory, seed: int, groups: int, flat: bool
) -> None:
    folder = tmp_path_factory.mktemp("qdq")
    source = write(folder / "in.onnx", seed, groups, flat)
    done = lowered(source, folder, between(source, folder))
    assert done.steps[-1].name == "qdq"
    assert all(new.zeros >= old.zeros for new, old in zip(done.weights, done.canonical, strict=True))
    made = onnx.load(done.path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.initializer}
    nodes = [node for node in made.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) == 3 * 3  # of each layer's activation two, and one of its weight
    for node in nodes:
        zero = arrays[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = [node for node in nodes if node.input[0] in arrays]
    assert all(arrays[node.input[0]].dtype == np.int8 for node in weights)
    assert [len(arrays[node.input[1]]) for node in weights] == [8, 8, 5]  # a scale for each output channel, which
    for stored in (arrays[node.input[0]] for node in weights):  # uses all of its levels, but where it was pruned whole
        assert {int(np.abs(channel).max()) for channel in stored} <= {127, 0}
    layers = [node for node in made.node if node.op_type in ("Conv", "Gemm")]
    assert all(arrays[node.input[2]].dtype == np.float32 for node in layers)


@pytest.mark.parametrize("flat", [False, True])
def test_exact_arithmetic_is_that_of_q_and_dq(tmp_path: Path, flat: bool) -> None:
    """ONNX Runtime runs them one by one, as they are written, where it may not optimize."""
    source = write(tmp_path / "in.onnx", flat=flat)
    done = lowered(source, tmp_path, between(source, tmp_path))
    dequantized.write(done.path, tmp_path / "exact.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(tmp_path / "exact.onnx"))
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(done.path, plain, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": samples()})
    np.testing.assert_allclose(run(tmp_path / "exact.onnx", samples())["logits"], wanted, rtol=1e-4, atol=1e-4)
    floating = run(source, samples())["logits"]
    assert 0 < np.abs(wanted - floating).max() < 0.1 * np.abs(floating).max()


def test_a_layer_may_stay_in_float_between_q_and_dq(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx")
    done = lowered(source, tmp_path, between(source, tmp_path, keep=("second",)))
    assert operators(done.path).count("QuantizeLinear") == 2
    assert quantize.layer_names(done.path) == ["second"]


def test_the_audit_sees_integers_behind_dq(tmp_path: Path) -> None:
    """By their own axes: groups of four lie along the input channels of what the operator takes."""
    source = write(tmp_path / "in.onnx")
    done = lowered(source, tmp_path, between(source, tmp_path))
    found = audit(load(done.path))
    assert [weight.name for weight in found] == ["first_quantized", "second_quantized", "head_quantized"]
    assert [weight.operator for weight in found] == ["Conv", "Conv", "Gemm"]
    before = audit(load(source))
    groups, groups_before = ([weight.patterns["2:4"] for weight in weights] for weights in (found, before))
    assert [counts.groups for counts in groups] == [counts.groups for counts in groups_before]
    assert groups[1].conforming >= groups_before[1].conforming


# ------------------------------------------------------------------------------------------- in DeepSparse itself


@pytest.mark.runtime
@pytest.mark.parametrize("bits", [7, 8])
def test_deepsparse_adds_products_without_saturating(tmp_path: Path, bits: int) -> None:
    """All of one sign and near the ends of their ranges: two of them with 8 bits are more than 16 bits hold."""
    target = load_target("cpu")
    if status(target).state == "unavailable":
        pytest.skip(status(target).detail)
    source = write(tmp_path / "in.onnx")
    model = onnx.load(source)
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        one.CopyFrom(numpy_helper.from_array(np.full_like(array, 0.1 if array.ndim > 1 else 0), one.name))
    onnx.save(model, source)
    x = np.random.default_rng(0).uniform(0.9, 1, size=(4, 3, SIDE, SIDE)).astype(np.float32)
    quantization = replace(quantized(source, tmp_path, inputs=[x]), weight_bits=bits)
    done = lowered(source, tmp_path, quantization)
    dequantized.write(done.path, tmp_path / "exact.onnx")
    with open_engine(target, ensure(target), done.path, batch_size=4, threads=1, precision="int8") as engine:
        assert engine.info()["supported_ops"] == 1.0
        found = engine.run({"x": x})["logits"]
    np.testing.assert_allclose(found, run(tmp_path / "exact.onnx", x)["logits"], rtol=1e-5)
