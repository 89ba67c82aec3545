"""Passes that spell an operator as DeepSparse knows it: the same numbers; or untouched, where it is not sure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from acdc_export import lowering

ROOT, HALF_ROOT = float(np.float32(np.sqrt(2))), float(np.float32(np.sqrt(0.5)))


def model(inputs: str, body: str, opset: int = 18, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from ONNX's own notation: `inputs` such as "float[2,3] x", `body` that computes `y`."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => (float y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def spelled(before: onnx.ModelProto, folder: Path, name: str) -> tuple[onnx.ModelProto, list[str]]:
    """The graph after the pass `name`, and the operators in it."""
    onnx.save(before, folder / "in.onnx")
    lowering.transform(folder / "in.onnx", folder / "out.onnx", passes=(name,), batch_size=2)
    after = onnx.load(folder / "out.onnx")
    return after, [node.op_type for node in after.graph.node]


def run(made: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@given(
    axis=st.integers(-3, 2),
    opset=st.sampled_from([17, 18]),
    epsilon=st.sampled_from([None, 1e-12, 0.5]),
    bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_layer_norm(
    tmp_path_factory: pytest.TempPathFactory, axis: int, opset: int, epsilon: float | None, bias: bool
) -> None:
    shape = (2, 3, 8)[axis:]
    how = f"axis = {axis}" + (f", epsilon = {epsilon:.12f}" if epsilon else "")
    arrays = {"scale": random(*shape)} | ({"bias": random(*shape) + 1} if bias else {})
    before = model("float[2,3,8] x", f"y = LayerNormalization<{how}>({', '.join(['x', *arrays])})", opset, **arrays)
    after, operators = spelled(before, tmp_path_factory.mktemp("norm"), "layer_norm")
    assert "LayerNormalization" not in operators
    assert operators.count("ReduceMean") == 2
    x = 3 * random(2, 3, 8) + 1
    np.testing.assert_allclose(run(after, x=x), run(before, x=x), rtol=1e-4, atol=1e-5)


def test_a_layer_norm_whose_mean_is_read_stays(tmp_path: Path) -> None:
    body = "n, m = LayerNormalization(x, scale) y = Add(n, m)"
    _, operators = spelled(model("float[2,8] x", body, scale=random(8)), tmp_path, "layer_norm")
    assert "LayerNormalization" in operators


@pytest.mark.parametrize("root", ["Div(x, root)", "Mul(x, half_root)", "Mul(half_root, x)"])
@pytest.mark.parametrize(
    "product",
    [
        "h = Mul(x, half) y = Mul(h, p)",
        "h = Mul(half, x) y = Mul(p, h)",
        "h = Mul(half, p) y = Mul(x, h)",
        "h = Mul(p, half) y = Mul(h, x)",
        "h = Mul(x, p) y = Mul(h, half)",
        "h = Mul(p, x) y = Mul(half, h)",
    ],
)
def test_gelu_gets_one_form(tmp_path: Path, root: str, product: str) -> None:
    numbers = {"root": ROOT, "half_root": HALF_ROOT, "one": 1, "half": 0.5}
    constants = {name: np.float32(number) for name, number in numbers.items()}
    before = model("float[2,8] x", f"r = {root} e = Erf(r) p = Add(e, one) {product}", **constants)
    after, operators = spelled(before, tmp_path, "gelu")
    assert operators == ["Div", "Erf", "Add", "Mul", "Mul"]
    x = 3 * random(2, 8)
    np.testing.assert_allclose(run(after, x=x), run(before, x=x), rtol=1e-5, atol=1e-6)


def test_an_erf_of_something_else_stays(tmp_path: Path) -> None:
    before = model("float[2,8] x", "r = Div(x, two) e = Erf(r) y = Mul(e, x)", two=np.float32(2))
    after, _ = spelled(before, tmp_path, "gelu")
    np.testing.assert_array_equal(run(after, x=random(2, 8)), run(before, x=random(2, 8)))


@pytest.mark.parametrize(
    "body", ["y = HardSwish(x)", "y = HardSigmoid(x)", "y = HardSigmoid<alpha = 0.3, beta = 0.25>(x)"]
)
def test_hard_activations(tmp_path: Path, body: str) -> None:
    before = model("float[2,64] x", body)
    after, operators = spelled(before, tmp_path, "hard_swish")
    assert set(operators) <= {"Add", "Clip", "Mul"}
    x = 5 * random(2, 64)
    np.testing.assert_allclose(run(after, x=x), run(before, x=x), rtol=1e-5, atol=1e-6)


GUARD = "p = Softmax(t) n = IsNaN(p) z = Where(n, zero, p) y = MatMul(z, v)"
NUMBERS = {"zero": np.float32(0), "low": np.float32(-3.4e38), "endless": np.float32(-np.inf)}


@pytest.mark.parametrize(
    ("scores", "left_out"),
    [
        ("t = Identity(s)", False),  # nothing is known of it
        ("t = Mul(s, low)", True),
        ("w = Where(m, zero, low) t = Add(s, w)", True),
        ("w = Where(m, zero, endless) t = Add(s, w)", False),
        ("t = Add(s, given)", False),
    ],
)
def test_the_guard_of_a_softmax_goes_where_it_never_acts(tmp_path: Path, scores: str, left_out: bool) -> None:
    body = f"s = MatMul(x, k) {scores} {GUARD}"
    numbers = {name: array for name, array in NUMBERS.items() if name in f"{body} "}
    before = model("float[2,8] x, bool[2,4] m, float[2,4] given", body, k=random(8, 4), v=random(4, 8), **numbers)
    after, operators = spelled(before, tmp_path, "softmax_guard")
    assert ("IsNaN" not in operators) == left_out
    given = np.array([[0, 0, -np.inf, 0], [-np.inf] * 4], np.float32)
    inputs = {"x": random(2, 8) / 100, "m": np.array([[True, False, True, True], [False] * 4]), "given": given}
    inputs = {item.name: inputs[item.name] for item in before.graph.input}
    np.testing.assert_allclose(run(after, **inputs), run(before, **inputs), rtol=1e-5, atol=1e-6)


@given(data=st.data(), operator=st.sampled_from(["Gather", "GatherElements", "GatherND"]), known=st.booleans())
@settings(max_examples=40, deadline=None)
def test_gathers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, operator: str, known: bool) -> None:
    axis = data.draw(st.integers(-2, 1)) if operator != "GatherND" else 0
    length = (2, 6)[axis]
    in_order = data.draw(st.booleans())
    indices = np.arange(length) if in_order else data.draw(st.permutations(range(length)).map(np.array))
    if operator == "GatherElements":
        indices = np.broadcast_to(indices if axis % 2 else indices[:, None], (2, 6))
    elif operator == "GatherND":
        indices = np.stack(np.meshgrid([0, 1], np.arange(6) if in_order else np.arange(6)[::-1], indexing="ij"), -1)
    how = "" if operator == "GatherND" else f"<axis = {axis}>"
    source, constants = ("table", {"table": random(2, 6)}) if known else ("x", {})
    body = f"g = {operator}{how}({source}, indices) y = Add(x, g)"
    before = model("float[2,6] x", body, indices=np.ascontiguousarray(indices, np.int64), **constants)
    after, operators = spelled(before, tmp_path_factory.mktemp("gathers"), "gathers")
    assert (operator not in operators) == (known or _keeps_order(operator, axis, indices))
    np.testing.assert_array_equal(run(after, x=random(2, 6)), run(before, x=random(2, 6)))


def _keeps_order(operator: str, axis: int, indices: np.ndarray) -> bool:
    flat = np.arange(12).reshape(2, 6)
    if operator == "Gather":
        chosen = np.take(flat, indices, axis)
    elif operator == "GatherElements":
        chosen = np.take_along_axis(flat, indices, axis)
    else:
        chosen = flat[indices[..., 0], indices[..., 1]]
    return np.array_equal(chosen.ravel(), flat.ravel())


def test_a_table_is_not_written_out_for_every_position(tmp_path: Path) -> None:
    before = model(
        "float[2,6] x", "g = Gather(table, indices) y = MatMul(x, g)", table=random(2, 3), indices=np.array([0, 1] * 3)
    )
    _, operators = spelled(before, tmp_path, "gathers")
    assert "Gather" in operators


@pytest.mark.parametrize(("passing", "dropped"), [([[True], [True]], True), ([[True], [False]], False)])
def test_a_mask_that_hides_nothing_is_dropped(tmp_path: Path, passing: list[list[bool]], dropped: bool) -> None:
    # Two layers, which share what joins the masks.
    layers = "a = And(passing, m) v = Where(a, zero, low) t = Add(x, v) w = Where(a, zero, low) y = Add(w, t)"
    before = model(
        "float[2,4] x, bool[1,4] m", layers, passing=np.array(passing), zero=np.float32(0), low=np.float32(-9)
    )
    after, operators = spelled(before, tmp_path, "masks")
    assert operators == (["Where", "Add", "Add"] if dropped else ["And", "Where", "Add", "Add"])
    inputs = {"x": random(2, 4), "m": np.array([[True, False, True, True]])}
    np.testing.assert_array_equal(run(after, **inputs), run(before, **inputs))


@pytest.mark.parametrize(("opset", "length"), [(13, 6), (18, 6), (18, 7)])
def test_a_split_gets_its_sizes(tmp_path: Path, opset: int, length: int) -> None:
    how = "axis = 1" + (", num_outputs = 3" if opset >= 18 else "")
    body = f"a, b, c = Split<{how}>(x) y = Concat<axis = 1>(c, a, b)"
    before = model(f"float[2,{length}] x", body, opset)
    after, _ = spelled(before, tmp_path, "split_sizes")
    (split,) = [node for node in after.graph.node if node.op_type == "Split"]
    assert len(split.input) == 2
    np.testing.assert_array_equal(run(after, x=random(2, length)), run(before, x=random(2, length)))
