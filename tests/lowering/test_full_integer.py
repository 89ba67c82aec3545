"""Where a network is rounded so that a compiler can run all of it in integers, and to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from acdc_export import lowering
from acdc_export.errors import GraphError
from acdc_export.lowering import audit, load, quantize
from acdc_export.lowering.quantize import Calibrated, Quantization, calibrate, dequantized

CHANNELS, SIDE = 8, 6
Node = tuple[str, str, str] | tuple[str, str, str, dict[str, Any]]
"""Operator, inputs, outputs, attributes."""

PADS = {"pads": [1, 1, 1, 1]}
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
HEAD: list[Node] = [
    ("GlobalAveragePool", "y", "pooled"),
    ("Flatten", "pooled", "flat"),
    ("Gemm", "flat head head_bias", "logits"),
]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Everything that the networks here read: weights, 80 % of them zero; batch norms; single numbers."""
    random = np.random.default_rng(seed)
    made = {name: random.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)) for name in ("w1", "w2", "w3", "w4", "w5")}
    for weight in made.values():
        weight[random.random(weight.shape) < 0.8] = 0
    made |= {name: random.normal(0, 0.3, (CHANNELS, CHANNELS, 1, 1)) for name in ("down", "up", "thin")}
    made |= {name: random.normal(0, 0.2, CHANNELS) for name in ("b1", "b2", "down_bias", "up_bias", "mean", "beta")}
    made |= {"gamma": random.uniform(0.5, 2, CHANNELS), "variance": random.uniform(0.5, 2, CHANNELS)}
    made |= {"head": random.normal(size=(CHANNELS, 5)), "head_bias": random.normal(size=5)}
    made |= {
        "scale": random.uniform(0.5, 2, (CHANNELS, 1, 1)),
        "deep": random.normal(0, 0.2, (CHANNELS, 2 * CHANNELS, 3, 3)),
    }
    made |= {"square": random.normal(size=(CHANNELS, CHANNELS))}
    made |= {name: np.float32(value) for name, value in NUMBERS.items()}
    return {name: np.asarray(array, dtype=np.float32) for name, array in made.items()} | OTHERS


NUMBERS = {
    "zero": 0.0,
    "half": 0.5,
    "n1": 1.0,
    "n2": 2.0,
    "n3": 3.0,
    "six": 6.0,
    "root": 2**0.5,
    "k": 0.044715,
    "s": 0.8,
}
OTHERS = {
    "border": np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64),
    "space": np.array([2, 3], dtype=np.int64),
    "rows": np.array([2], dtype=np.int64),
    "plane_of_its_own": np.linspace(-1, 1, SIDE * SIDE, dtype=np.float32).reshape(1, 1, SIDE, SIDE),
    "plane": np.array([0, CHANNELS, -1], dtype=np.int64),
    "planes": np.array([0, CHANNELS, SIDE, SIDE], dtype=np.int64),
}


def write(path: Path, nodes: Sequence[Node], outputs: str = "logits", opset: int = 18, **changes: Any) -> Path:
    """A network of x, (batch, 8, 6, 6), that reads what `arrays` has; `changes` are other arrays by name."""
    made = [
        helper.make_node(
            operator, ["" if name == "-" else name for name in inputs.split()], output.split(), **dict(*rest)
        )
        for operator, inputs, output, *rest in nodes
    ]
    names = {name for node in made for name in node.input}
    stored = {name: array for name, array in {**arrays(), **changes}.items() if name in names}
    graph = helper.make_graph(
        made,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, 7 if name == "indices" else 1, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def samples(seed: int = 0, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, CHANNELS, SIDE, SIDE)).astype(np.float32)


def run(path: Path, x: np.ndarray, optimized: bool = True) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@dataclass(frozen=True)
class Made:
    """A network before and after, and what stands where."""

    source: Path
    graph: lowering.TransformedGraph

    @property
    def nodes(self) -> list[NodeProto]:
        return list(onnx.load(self.graph.path).graph.node)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {item.name: numpy_helper.to_array(item) for item in onnx.load(self.graph.path).graph.initializer}

    @property
    def quantized(self) -> dict[str, tuple[float, int]]:
        """Scale and zero point of each activation that is quantized, by its name."""
        stored = self.arrays
        conversions = [node for node in self.nodes if node.op_type == "QuantizeLinear"]
        assert all(stored[node.input[2]].dtype == np.uint8 for node in conversions)
        return {node.input[0]: (float(stored[node.input[1]]), int(stored[node.input[2]])) for node in conversions}

    def readers(self, name: str) -> list[str]:
        return [node.op_type for node in self.nodes if name in node.input]


def made(tmp_path: Path, nodes: Sequence[Node], passes: tuple[str, ...] = ("fold_batchnorm",), **how: Any) -> Made:
    keep = how.pop("keep", ())
    source = write(tmp_path / "in.onnx", nodes, **how)
    return Made(source, quantized(source, tmp_path, passes, keep))


def quantized(
    source: Path,
    folder: Path,
    passes: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    scheme: str = "full_integer",
    weight_bits: int = 8,
) -> lowering.TransformedGraph:
    folded, instrumented = folder / "folded.onnx", folder / "instrumented.onnx"
    quantize.fold(source, folded)
    watched = quantize.instrument(folded, instrumented, keep, [scheme])
    batches = [{"x": samples(seed, 64)} for seed in range(100, 104)]
    calibration = calibrate(lambda inputs: run(instrumented, inputs["x"]), batches, watched)
    quantization = Quantization(Calibrated(folded, calibration), scheme, keep, weight_bits)
    return lowering.transform(source, folder / "out.onnx", passes=passes, batch_size=8, quantization=quantization)


# -------------------------------------------------------------------------------------------- where it is rounded

RESIDUAL: list[Node] = [
    ("Conv", "x w1 b1", "a", PADS),
    ("Relu", "a", "stem"),
    ("Conv", "stem thin", "beside"),
    ("Conv", "stem w2", "c", PADS),
    ("Relu", "c", "d"),
    ("Conv", "d w3 b2", "last", PADS),
    ("Add", "last beside", "sum"),
    ("Relu", "sum", "y"),
    *HEAD,
]
SILU: list[Node] = [("Sigmoid", "c", "gate_c"), ("Mul", "c gate_c", "silu")]
SQUEEZED: list[Node] = [
    ("Conv", "x w1 b1", "c", PADS),
    *SILU,
    ("GlobalAveragePool", "silu", "mean_silu"),
    ("Conv", "mean_silu down down_bias", "e"),
    ("Relu", "e", "f"),
    ("Conv", "f up up_bias", "g"),
    ("HardSigmoid", "g", "gate"),
    ("Mul", "gate silu", "gated"),
    ("Conv", "gated thin", "narrow"),
    ("Add", "x narrow", "y"),
    *HEAD,
]
DENSE: list[Node] = [
    ("Conv", "x w1 b1", "a", PADS),
    ("MaxPool", "a", "stem", {**POOL, "strides": [1, 1]}),
    ("BatchNormalization", "stem gamma beta mean variance", "n1_", {}),
    ("Relu", "n1_", "r1"),
    ("Conv", "r1 w2", "new", PADS),
    ("Concat", "stem new", "joined", {"axis": 1}),
    ("Conv", "joined deep", "y", PADS),
    *HEAD,
]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (RESIDUAL, "x stem beside d y pooled flat"),
        (SQUEEZED, "x c silu mean_silu f g gate gated e y pooled flat"),
        (DENSE, "x a stem r1 new joined y pooled flat"),
        ([("Conv", "x w1", "c", PADS), ("Clip", "c zero six", "y"), *HEAD], "x y pooled flat"),
        ([("Conv", "x w1", "c", PADS), ("LeakyRelu", "c", "y"), *HEAD], "x c y pooled flat"),
        ([("Conv", "x w1", "c", PADS), ("Mul", "c scale", "d"), ("Relu", "d", "y"), *HEAD], "x c y pooled flat"),
        ([("Sub", "x x2", "d"), ("Relu", "d", "y"), *HEAD], "x x2 y pooled flat"),
    ],
)
def test_activations_are_uint8_around_what_runs_as_one(tmp_path: Path, nodes: list[Node], expected: str) -> None:
    if "x2" in expected:
        nodes = [("MaxPool", "x", "x2", {"kernel_shape": [1, 1]}), *nodes]
    result = made(tmp_path, nodes)
    wanted = set(expected.split()) - ({"e"} if nodes is SQUEEZED else set())  # e is in one with its ReLU
    assert set(result.quantized) == wanted
    for name in wanted:  # all read the dequantized value, whatever they are
        assert result.readers(name) == ["QuantizeLinear"]
    assert "QuantizeLinear" not in result.readers("logits")
    assert near(result)


def near(result: Made) -> bool:
    """Whether its logits, one operator after the other, are those in FP32 but for rounding."""
    return off(result.graph.path, result.source) < 0.06


def off(path: Path, source: Path) -> float:
    """The root mean square difference of the logits from FP32, as a share of their standard deviation."""
    batches = [samples(seed) for seed in range(9, 17)]
    floating, integers = (
        np.concatenate([run(model, x, optimized=False)["logits"] for x in batches]) for model in (source, path)
    )
    return float(np.sqrt(np.square(integers - floating).mean()) / floating.std())


FUNCTIONS: dict[str, list[Node]] = {
    "SiLU": [("Sigmoid", "c", "t"), ("Mul", "c t", "y")],
    "HardSwish": [("HardSwish", "c", "y")],
    "HardSwish by its parts": [
        ("Add", "c n3", "t"), ("Clip", "t zero six", "u"), ("Mul", "c u", "v"), ("Div", "v six", "y"),
    ],
    "GELU": [
        ("Div", "c root", "t"), ("Erf", "t", "u"), ("Add", "u n1", "v"), ("Mul", "c v", "w"), ("Mul", "w half", "y"),
    ],
    "GELU by tanh": [
        ("Pow", "c n3", "t"), ("Mul", "t k", "u"), ("Add", "c u", "v"), ("Mul", "v s", "p"), ("Tanh", "p", "q"),
        ("Add", "q n1", "r"), ("Mul", "c half", "l"), ("Mul", "l r", "y"),
    ],
    "Mish": [("Softplus", "c", "t"), ("Tanh", "t", "u"), ("Mul", "u c", "y")],
    "square": [("Mul", "c c", "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_rounded_within_a_function_of_one_activation(tmp_path: Path, name: str) -> None:
    result = made(tmp_path, [("Conv", "x w1", "c", PADS), *FUNCTIONS[name], *HEAD])
    assert set(result.quantized) == {"x", "c", "y", "pooled", "flat"}
    assert near(result)


def test_a_function_reads_what_was_computed_of_two(tmp_path: Path) -> None:
    """Elementwise as well, but of two activations: the function begins behind it."""
    nodes: list[Node] = [("Conv", "x w1", "a", PADS), ("Conv", "x w2", "b", PADS), ("Mul", "a b", "c"), *SILU]
    result = made(tmp_path, [*nodes, ("Conv", "silu w3", "y", PADS), *HEAD])
    assert set(result.quantized) == {"x", "a", "b", "c", "silu", "y", "pooled", "flat"}


@pytest.mark.parametrize(
    ("reader", "outputs"),
    [(("Mul", "x gate_c", "z"), "logits"), (("Softmax", "gate_c", "z"), "logits"), (None, "gate_c logits")],
)
def test_what_is_read_from_outside_is_rounded_within_too(tmp_path: Path, reader: Node | None, outputs: str) -> None:
    """The sigmoid is not the function's alone; so the product has two operands."""
    nodes: list[Node] = [("Conv", "x w1", "c", PADS), *SILU]
    nodes += [reader, ("Add", "silu z", "y"), *HEAD] if reader else [("Relu", "silu", "y"), *HEAD]
    result = made(tmp_path, nodes, outputs=outputs)
    assert {"c", "gate_c"} <= set(result.quantized)
    (product,) = (node for node in result.nodes if node.output[0] == "silu")
    assert sorted(product.input) == ["c_dequantized", "gate_c_dequantized"]


def test_a_matmul_has_its_bias_behind_it(tmp_path: Path) -> None:
    nodes: list[Node] = [
        *HEAD[:1], ("Flatten", "pooled", "f"), ("MatMul", "f square", "a"), ("Add", "a b1", "b"), ("Relu", "b", "r"),
        ("MatMul", "r square", "logits"),
    ]  # fmt: skip
    nodes[0] = ("GlobalAveragePool", "x", "pooled")
    result = made(tmp_path, nodes)
    assert set(result.quantized) == {"x", "pooled", "f", "r"}
    assert near(result)


def test_shapes_that_a_file_does_not_tell_are_inferred(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx", SQUEEZED)
    expected = Made(source, quantized(source, tmp_path)).quantized
    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, source)
    assert Made(source, quantized(source, tmp_path)).quantized == expected


@pytest.mark.parametrize(
    ("nodes", "given"),
    [
        ([("Softmax", "c", "y", {"axis": 1})], "c"),
        ([("Clip", "c n1 six", "v"), ("Div", "n1 v", "y")], "v"),  # rounded, v might be 0
        ([("Relu", "c", "v"), ("Pow", "v half", "y")], "v"),  # a root
        ([("AveragePool", "c", "v", {"kernel_shape": [1, SIDE]}), ("Add", "c v", "y")], "v"),
        ([("ReduceMean", "c rows", "y")], "c"),
        ([("MaxPool", "c", "y indices", {"kernel_shape": [1, 1]})], "c"),
        ([("Transpose", "c", "y", {"perm": [0, 1, 3, 2]})], "c"),
        ([("Pad", "c border n1", "y")], "c"),
        ([("Concat", "c c", "y", {"axis": 2})], "c"),
        ([("ReduceMax", "c", "y", {"axes": [3]})], "c"),
        ([("Add", "c plane_of_its_own", "y")], "c"),
    ],
    ids=lambda value: value[-1][0] if isinstance(value, list) else value,
)
def test_what_has_no_integer_form_stays_in_fp32(tmp_path: Path, nodes: list[Node], given: str) -> None:
    """What comes before it goes there as FP32; what comes of it is rounded for the next layer."""
    opset = 13 if nodes[-1][0] == "ReduceMax" else 18
    everything = [("Conv", "x w1", "c", PADS), *nodes, ("Conv", "y w2", "z", PADS), head("z")]
    outputs = "logits indices" if "indices" in nodes[-1][2] else "logits"
    result = made(tmp_path, everything, outputs=outputs, opset=opset)  # type: ignore[arg-type]
    assert given not in result.quantized
    assert {"x", "y", "z"} <= set(result.quantized)
    assert near(result)


def head(name: str) -> Node:
    return ("GlobalAveragePool", name, "logits")


def test_outputs_of_the_network_stay_fp32_also_where_others_read_them(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", "x w1", "features", PADS), ("Relu", "features", "y"), *HEAD,
    ]  # fmt: skip
    result = made(tmp_path, nodes, outputs="features logits y")
    assert result.readers("features") == result.readers("y") == ["QuantizeLinear"]
    x = samples(9)
    floating, integers = run(result.source, x), run(result.graph.path, x, optimized=False)
    for name in ("features", "y"):
        levels = integers[name] / result.quantized[name][0]
        assert np.abs(levels - np.round(levels)).max() > 0.1
        np.testing.assert_allclose(integers[name], floating[name], atol=0.1)


# ---------------------------------------------------------------------------------------------------- to what


@pytest.mark.parametrize(
    ("nodes", "name", "low", "high"),
    [
        ([("Relu", "c", "y")], "y", 0, np.inf),
        ([("Clip", "c zero six", "y")], "y", 0, 6),
        ([("Sigmoid", "c", "y")], "y", 0, 1),
        ([("Mul", "c six", "d"), ("HardSigmoid", "d", "y")], "y", 0, 1),
        ([("Relu", "c", "d"), ("Mul", "d x", "e"), ("Relu", "e", "y")], "y", 0, np.inf),
        ([("Add", "c x", "d"), ("Clip", "d - six", "y")], "y", -np.inf, 6),
    ],
)
def test_a_range_ends_where_the_function_does(
    tmp_path: Path, nodes: list[Node], name: str, low: float, high: float
) -> None:
    result = made(tmp_path, [("Conv", "x w1 b1", "c", PADS), *nodes, *HEAD])
    for scale, zero in result.quantized.values():
        assert scale >= np.finfo(np.float32).tiny
        assert 0 <= zero <= 255
    scale, zero = result.quantized[name]
    assert -zero * scale >= low
    assert (255 - zero) * scale <= high * (1 + 1e-6)


@pytest.mark.parametrize(
    "node",
    [
        ("MaxPool", "c", "d", POOL), ("Pad", "c border", "d"), ("Flatten", "c", "d"), ("Reshape", "c plane", "d"),
        ("GlobalMaxPool", "c", "d"), ("Reshape", "c computed", "d"), ("Unsqueeze", "c space", "d"),
    ],
    ids=lambda node: node[0],
)  # fmt: skip
def test_what_keeps_values_keeps_scale_and_zero_point(tmp_path: Path, node: Node) -> None:
    nodes: list[Node] = [("Shape", "x", "computed"), ("Conv", "x w1", "c", PADS), node, ("Tanh", "d", "logits")]
    result = made(tmp_path, nodes)
    assert result.quantized["d"] == result.quantized["c"]
    conversions = [node for node in result.nodes if node.op_type == "QuantizeLinear"]
    assert len({tuple(node.input[1:]) for node in conversions if node.input[0] in "cd"}) == 1  # the same constants
    assert result.quantized["x"] != result.quantized["c"]


JOINED: list[Node] = [
    ("Conv", "x w1", "a", PADS),
    ("Conv", "x w2", "b", PADS),
    ("Concat", "a b", "ab", {"axis": 1}),
    ("Conv", "ab deep", "y", PADS),
    *HEAD,
]


def test_what_only_a_concat_reads_has_the_scale_of_its_output(tmp_path: Path) -> None:
    scales = made(tmp_path, JOINED).quantized
    assert scales["a"] == scales["b"] == scales["ab"]
    assert scales["a"] != scales["x"]


@pytest.mark.parametrize(
    ("change", "own"),
    [
        ([("Tanh", "a", "t"), ("Add", "t y", "other")], "a"),  # something else reads it
        ([("Identity", "a", "other")], "a"),
    ],
)
def test_what_others_read_as_well_has_a_scale_of_its_own(tmp_path: Path, change: list[Node], own: str) -> None:
    scales = made(tmp_path, [*JOINED, *change], outputs="logits other").quantized
    assert scales[own] != scales["ab"]
    assert scales["b"] == scales["ab"]


def test_where_the_output_of_a_concat_stays_fp32_its_operands_have_their_own(tmp_path: Path) -> None:
    scales = made(tmp_path, [*JOINED[:2], ("Concat", "a b", "logits", {"axis": 1})]).quantized
    assert set(scales) == {"x", "a", "b"}
    assert scales["a"] != scales["b"]


def test_behind_a_relu_the_zero_point_stays_0_within_a_concat(tmp_path: Path) -> None:
    nodes = [*JOINED[:2], ("Relu", "b", "r"), ("Concat", "a r", "ab", {"axis": 1}), *JOINED[3:]]
    scales = made(tmp_path, nodes).quantized  # type: ignore[arg-type]
    assert scales["r"][1] == 0
    assert scales["a"] == scales["ab"]
    assert scales["ab"][1] > 0
    both = [*JOINED[:2], ("Relu", "a", "q"), ("Relu", "b", "r"), ("Concat", "q r", "ab", {"axis": 1}), *JOINED[3:]]
    scales = made(tmp_path, both).quantized  # type: ignore[arg-type]
    assert scales["q"] == scales["r"] == scales["ab"]
    assert scales["ab"][1] == 0


def test_joined_values_that_were_kept_have_the_scale_that_they_had(tmp_path: Path) -> None:
    """A MaxPool keeps that of what it reads; a Concat of Concats has one for all."""
    pooled = {"kernel_shape": [3, 3], **PADS}
    nodes: list[Node] = [
        *JOINED[:2],
        ("MaxPool", "x", "p", pooled),
        ("Concat", "a b", "ab", {"axis": 1}),
        ("Concat", "ab p", "abp", {"axis": 1}),
        ("GlobalAveragePool", "abp", "logits"),
    ]
    scales = made(tmp_path, nodes).quantized
    assert scales["p"] == scales["x"]
    assert scales["a"] == scales["b"] == scales["ab"] == scales["abp"]


def test_a_range_moves_with_the_values_that_a_pass_moved(tmp_path: Path) -> None:
    """The pass makes of ReduceMean two operators, of which calibration saw the second alone."""
    nodes: list[Node] = [
        ("Conv", "x w1", "y", PADS),
        ("ReduceMean", "y space", "flat", {"keepdims": 0}),
        ("Gemm", "flat head head_bias", "logits"),
    ]
    result = made(tmp_path, nodes, ("fold_batchnorm", "global_average_pool", "static_batch"))
    (pool,) = (node for node in result.nodes if node.op_type == "GlobalAveragePool")
    assert result.quantized[pool.output[0]] == result.quantized["flat"]
    assert near(result)


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("nodes", [RESIDUAL, SQUEEZED, DENSE])
def test_weights_are_symmetric_with_a_scale_for_each_channel_and_zeros_stay(tmp_path: Path, nodes: list[Node]) -> None:
    result = made(tmp_path, nodes)
    stored = result.arrays
    weights = {name: array for name, array in stored.items() if array.dtype == np.int8 and array.ndim > 1}
    assert [weight.name for weight in audit(load(result.graph.path))] == list(weights) or set(weights) == {
        weight.name for weight in audit(load(result.graph.path))
    }
    for name, integers in weights.items():
        base = name.removesuffix("_quantized")
        outputs = 1 if base == "head" else 0
        assert stored[f"{base}_scales"].shape == (integers.shape[outputs],)
        assert not stored[f"{base}_zero_points"].any()
        assert ((integers == 0) >= (arrays()[base] == 0)).all()
        others = tuple(axis for axis in range(integers.ndim) if axis != outputs)
        assert set(np.abs(integers.astype(int)).max(others)) <= {127, 0}
    assert all(stored[node.input[2]].dtype == np.float32 for node in result.nodes if node.op_type in ("Conv", "Gemm"))


@pytest.mark.parametrize("changes", [{"w1": 0.0}, {"w1": 1e-12}, {"w1": 0.0, "b1": 0.0}, {"head": 0.0}, {"w1": 1e-40}])
def test_a_bias_fits_into_int32_in_steps_of_its_layer(tmp_path: Path, changes: dict[str, float]) -> None:
    """A compiler adds it to integers: beside weights that hardly count it would overflow, or be coarse."""
    full = {name: np.full_like(arrays()[name], value) for name, value in changes.items()}
    result = made(tmp_path, [("Conv", "x w1 b1", "y", PADS), *HEAD], **full)
    stored = result.arrays
    for name, activation in (("w1", "x"), ("head", "flat")):
        step = result.quantized[activation][0] * stored[f"{name}_scales"].astype(np.float64)
        bias = stored[f"{name}_bias_corrected"]
        assert (step >= np.finfo(np.float32).tiny).all()
        assert (np.abs(bias / step) < 2**31).all()
        empty = ~stored[f"{name}_quantized"].any(tuple(range(1, stored[f"{name}_quantized"].ndim)))
        if name == "w1":  # of a channel with nothing else, it loses nothing
            assert (step < 1e-6 * np.abs(bias))[empty & (bias != 0)].all()
    assert np.abs(run(result.graph.path, samples(9))["logits"] - run(result.source, samples(9))["logits"]).max() < 0.05


# ---------------------------------------------------------------------------------------------------- layers in FP32


def test_around_layers_that_stay_in_fp32_nothing_is_rounded_for_them(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", "x w1", "a", PADS),
        ("Relu", "a", "b"),
        ("Conv", "b w2", "c", PADS),  # in FP32, with its ReLU and what follows
        ("Relu", "c", "d"),
        ("MaxPool", "d", "e", POOL),
        ("Conv", "e w3", "f", PADS),  # in FP32
        ("Relu", "f", "g"),
        ("Conv", "g w4", "y", PADS),
        *HEAD,
    ]
    result = made(tmp_path, nodes, keep=("w2", "w3"))
    assert set(result.quantized) == {"x", "g", "y", "pooled", "flat"}
    assert result.readers("b") == ["Conv"]  # no layer in INT8 reads it: it is not rounded
    assert {name for name in result.arrays if name.startswith("w")} >= {"w2", "w3", "w1_quantized", "w4_quantized"}
    assert quantize.layer_names(result.graph.path) == ["w2", "w3"]
    # What a layer in FP32 makes, another reads as it is; what a layer in INT8 makes, there is as uint8 alone.
    joined: list[Node] = [
        *nodes[:3],
        ("Conv", "c w3", "e", PADS),
        ("Conv", "c w4", "f", PADS),
        ("Conv", "b w5", "g", PADS),
    ]
    joined += [("Add", "e f", "h"), ("Add", "g h", "y"), *HEAD]
    result = made(tmp_path, joined, keep=("w2", "w3"))
    assert sorted(result.readers("c")) == ["Conv", "QuantizeLinear"]
    assert result.readers("b") == ["QuantizeLinear"]


def test_where_all_layers_stay_in_fp32_so_does_everything(tmp_path: Path) -> None:
    result = made(tmp_path, SQUEEZED, keep=("w1", "down", "up", "thin", "head"))
    assert not result.quantized
    assert {node.op_type for node in result.nodes} & {"QuantizeLinear", "DequantizeLinear"} == set()


def test_layers_whose_bias_is_computed_stay_in_fp32(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", "x w1", "y", PADS),
        ("GlobalAveragePool", "y", "pooled"),
        ("Flatten", "pooled", "flat"),
        ("Gemm", "flat head", "bias"),
        ("Gemm", "flat head bias", "logits"),
    ]
    result = made(tmp_path, nodes)
    assert set(result.quantized) == {"x", "y", "pooled", "flat"}
    assert near(result)


# ------------------------------------------------------------------------------------------------------- what it means


@pytest.mark.parametrize("nodes", [RESIDUAL, SQUEEZED, DENSE, JOINED], ids=["residual", "squeezed", "dense", "joined"])
def test_the_dequantized_reference_is_what_the_operators_say(tmp_path: Path, nodes: list[Node]) -> None:
    """ONNX Runtime runs them one by one, as they are written, where it may not optimize."""
    result = made(tmp_path, nodes)
    path = tmp_path / "exact.onnx"
    dequantized.write(result.graph.path, path)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in onnx.load(path).graph.node}
    x = samples(9)
    written = run(result.graph.path, x, optimized=False)["logits"]
    np.testing.assert_allclose(run(path, x)["logits"], written, rtol=1e-4, atol=1e-4)
    assert 1e-4 < off(result.graph.path, result.source) < 0.06


@pytest.mark.parametrize("nodes", [RESIDUAL, SQUEEZED, DENSE, JOINED], ids=["residual", "squeezed", "dense", "joined"])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_about_as_accurate_as_rounding_what_goes_into_layers_alone(
    tmp_path: Path, nodes: list[Node], seed: int
) -> None:
    """In ONNX Runtime; where there are many functions, twice as much is rounded."""
    source = write(tmp_path / "in.onnx", nodes, **arrays(seed))
    errors = {}
    for scheme in ("full_integer", "qdq"):
        errors[scheme] = off(quantized(source, tmp_path, ("fold_batchnorm",), (), scheme).path, source)
    assert errors["full_integer"] < 1.8 * errors["qdq"]


def test_far_values_become_the_ends_of_their_range(tmp_path: Path) -> None:
    """In the reference as in the integers, with a zero point that is not 0."""
    result = made(tmp_path, [("Conv", "x w1", "y", PADS), *HEAD])
    dequantized.write(result.graph.path, tmp_path / "exact.onnx")
    x = 100 * samples(9)
    written = run(result.graph.path, x, optimized=False)["logits"]
    np.testing.assert_allclose(run(tmp_path / "exact.onnx", x)["logits"], written, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- calibration


def test_what_other_schemes_calibrate_is_the_same_beside_it(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx", SQUEEZED)
    calibrations = []
    for schemes in ([], ["convinteger", "qdq"], ["full_integer", "qdq"]):
        watched = quantize.instrument(source, tmp_path / "watched.onnx", (), schemes)
        batches = [{"x": samples(seed, 256)} for seed in range(4)]  # more values than are kept
        calibrations.append(
            calibrate(lambda inputs: run(tmp_path / "watched.onnx", inputs["x"]), batches, watched, "percentile")
        )
    alone, others, beside = calibrations
    assert alone.ranges == others.ranges
    assert set(alone.ranges) == {"x", "mean_silu", "f", "gated", "flat"}
    assert set(beside.ranges) == set(alone.ranges) | {"c", "silu", "g", "gate", "y", "pooled"}
    assert {name: beside.ranges[name] for name in alone.ranges} == alone.ranges
    for name, mean in alone.means.items():
        np.testing.assert_array_equal(beside.means[name], mean)


def test_an_activation_that_was_not_calibrated_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in.onnx", RESIDUAL)
    quantize.fold(source, tmp_path / "folded.onnx")
    watched = quantize.instrument(tmp_path / "folded.onnx", tmp_path / "watched.onnx")  # for other schemes alone
    calibration = calibrate(lambda inputs: run(tmp_path / "watched.onnx", inputs["x"]), [{"x": samples()}], watched)
    quantization = Quantization(Calibrated(tmp_path / "folded.onnx", calibration), "full_integer")
    with pytest.raises(GraphError, match="The activation beside, which goes into Add, was not calibrated"):
        lowering.transform(source, tmp_path / "out.onnx", passes=(), batch_size=8, quantization=quantization)


def test_an_opset_without_scales_for_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="opset 12"):
        made(tmp_path, RESIDUAL, opset=12)


@pytest.mark.parametrize(("bits", "greatest"), [(7, 63), (8, 127)])
def test_weights_use_all_of_their_bits_and_no_more(tmp_path: Path, bits: int, greatest: int) -> None:
    source = write(tmp_path / "in.onnx", RESIDUAL)
    stored = Made(source, quantized(source, tmp_path, weight_bits=bits)).arrays.values()
    assert {int(np.abs(array.astype(int)).max()) for array in stored if array.dtype == np.int8 and array.ndim > 1} == {
        greatest
    }
