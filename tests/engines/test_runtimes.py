"""The real runtimes, each in its own environment, which is kept from one run of the tests to the next."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from acdc_export.config import Target, load_target
from acdc_export.engines import Built, Environment, InstalledTarget, Worker, ensure, licenses, open_engine, status
from acdc_export.errors import ModelRefused, RuntimeUnavailable
from acdc_export.present.progress import TerminalProgress

pytestmark = pytest.mark.runtime

BATCH, CHANNELS = 4, 16


class Model:
    """Convolution with 3 in 4 weights zero, Relu, global average, matrix product: in ONNX and in numpy."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.kernel = random.normal(size=(CHANNELS, 3, 1, 1)).astype(np.float32)
        self.kernel[random.random(self.kernel.shape) < 0.75] = 0
        self.matrix = random.normal(size=(CHANNELS, 10)).astype(np.float32)
        self.x = random.normal(size=(BATCH, 3, 8, 8)).astype(np.float32)
        self.path = folder / "model.onnx"
        self._save()

    def expected(self) -> NDArray[Any]:
        hidden = np.maximum(np.einsum("oihw,bixy->boxy", self.kernel, self.x), 0)
        return np.asarray(hidden.mean(axis=(2, 3)) @ self.matrix)

    def _save(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "kernel"], ["convolved"]),
            helper.make_node("Relu", ["convolved"], ["hidden"]),
            helper.make_node("GlobalAveragePool", ["hidden"], ["average"]),
            helper.make_node("Flatten", ["average"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ]
        save(nodes, self.x.shape, (BATCH, 10), {"kernel": self.kernel, "matrix": self.matrix}, self.path)


def save(nodes: list[Any], taken: Any, given: Any, constants: dict[str, NDArray[Any]], path: Path) -> None:
    """A graph that makes `logits` of `x`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, given)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "cpu"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Environment]:
    return installed(request.param, tmp_path_factory)


def installed(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Environment]:
    target = load_target(name)
    remembered = tmp_path_factory.mktemp("home") / "licenses.json"
    with pytest.MonkeyPatch.context() as patch:
        # What the tests accept, they accept for themselves: not in the home that they share with their user.
        patch.setattr(licenses, "_file", lambda: remembered)
        found = status(target)
        if found.state == "unavailable":
            pytest.skip(found.detail)
        if target.license.accept:
            patch.delenv(licenses.VARIABLE, raising=False)
            with pytest.raises(RuntimeUnavailable, match="--accept-license deepsparse"):
                ensure(target)
        accepted = frozenset({target.runtime.name})
        return target, ensure(target, accept_licenses=accepted, progress=TerminalProgress())


@pytest.fixture
def start(runtime: tuple[Target, Environment]) -> Callable[..., Worker]:
    core = max(os.sched_getaffinity(0))

    def open_it(path: Path, **options: Any) -> Worker:
        return open_engine(*runtime, path, batch_size=BATCH, threads=1, cpus=[core], **options)

    return open_it


@pytest.fixture
def engine(start: Callable[[Path], Worker], model: Model) -> Iterator[Worker]:
    with start(model.path) as engine:
        yield engine


def test_computes_what_numpy_computes(engine: Worker, model: Model) -> None:
    outputs = engine.run({"x": model.x})
    assert list(outputs) == ["logits"]
    np.testing.assert_allclose(outputs["logits"], model.expected(), rtol=1e-5, atol=1e-5)


def test_times(engine: Worker, model: Model) -> None:
    times = engine.time({"x": model.x}, 5).nanoseconds
    assert (times.shape, times.dtype) == ((5,), np.int64)
    assert (times > 0).all()
    assert engine.peak_memory() > 2**20
    assert 1 <= engine.timer() < 1e6
    assert engine.cpu_seconds() > 0


def test_profiles_by_operator_where_it_can(engine: Worker, runtime: tuple[Target, Environment], model: Model) -> None:
    profile = engine.profile({"x": model.x}, 5)
    if runtime[0].name != "openvino":
        assert profile is None
        return
    assert profile
    assert all(layer.seconds >= 0 for layer in profile)
    assert {"Convolution", "FullyConnected", "MatMul"} & {layer.operator for layer in profile}
    assert len({layer.name for layer in profile}) == len(profile)


def test_goes_on_after_a_pause(engine: Worker, model: Model) -> None:
    first = engine.run({"x": model.x})["logits"]
    engine.pause()
    engine.resume()
    np.testing.assert_array_equal(engine.run({"x": model.x})["logits"], first)


def test_says_what_it_is(engine: Worker, runtime: tuple[Target, Environment]) -> None:
    target, environment = runtime
    info = engine.info()
    assert info["runtime"] == target.runtime.name
    assert info["version"] == environment.locked[target.runtime.name]
    assert info.get("precision") == {"cpu": None, "onnxruntime": "fp32", "openvino": "f32"}[target.name]
    if target.name == "cpu":
        assert info["instruction_set"].startswith(("avx", "neon", "sve"))
        assert info["supported_ops"] == 1.0


def test_imports_no_setuptools(runtime: tuple[Target, Environment]) -> None:
    target, environment = runtime
    check = f"import sys, {target.runtime.name}; sys.exit('setuptools' in sys.modules)"
    done = subprocess.run(
        [environment.python, "-I", "-B", "-c", check], env={**os.environ, **target.runtime.variables}, check=False
    )
    assert done.returncode == 0


def test_tells_nobody_that_it_is_used(runtime: tuple[Target, Environment], tmp_path: Path) -> None:
    """Telemetry keeps an identity of its user at home."""
    target, environment = runtime
    outside = {name: value for name, value in os.environ.items() if name != "CI"}
    variables = {**outside, "HOME": str(tmp_path), **target.runtime.variables}
    subprocess.run(
        [environment.python, "-I", "-B", "-c", f"import {target.runtime.name}"], env=variables, check=True, timeout=60
    )
    assert not list(tmp_path.iterdir())


def test_wrong_inputs_are_refused(engine: Worker, model: Model) -> None:
    for wrong in ({"x": model.x.astype(np.float64)}, {"x": model.x[:, :, :4]}, {"y": model.x}):
        for ask in (engine.run, lambda inputs: engine.time(inputs, 1)):
            with pytest.raises(ModelRefused):
                ask(wrong)
    np.testing.assert_allclose(engine.run({"x": model.x})["logits"], model.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2 * BATCH, 2 * BATCH + 1])
def test_a_batch_in_parts(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, batch_size: int) -> None:
    """DeepSparse gets a graph for parts of a batch, or for more than one; the last part is filled up."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(12, 10)).astype(np.float32)
    x = random.normal(size=(batch_size, 3, 2, 2)).astype(np.float32)
    nodes = [  # the batch size is in the graph itself, not only in what it takes
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    constants = {"shape": np.array([BATCH, 12]), "matrix": matrix}
    save(nodes, (BATCH, 3, 2, 2), (BATCH, 10), constants, tmp_path / "model.onnx")
    runtime, core = installed("cpu", tmp_path_factory), max(os.sched_getaffinity(0))
    with open_engine(*runtime, tmp_path / "model.onnx", batch_size=batch_size, threads=1, cpus=[core]) as engine:
        expected = x.reshape(batch_size, 12) @ matrix
        np.testing.assert_allclose(engine.run({"x": x})["logits"], expected, rtol=1e-5, atol=1e-5)
        assert (engine.time({"x": x}, 2).nanoseconds > 0).all()
        with pytest.raises(ModelRefused, match="has shape"):
            engine.run({"x": np.concatenate([x, x])})


def test_an_open_batch_size(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """As DeepSparse gets it in a target of one's own, without the pass that fixes it."""
    constants = {"matrix": np.eye(3, 5, dtype=np.float32)}
    save([helper.make_node("MatMul", ["x", "matrix"], ["logits"])], ("n", 3), ("n", 5), constants, tmp_path / "m.onnx")
    runtime, core = installed("cpu", tmp_path_factory), max(os.sched_getaffinity(0))
    with open_engine(*runtime, tmp_path / "m.onnx", batch_size=2, threads=1, cpus=[core]) as engine:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_allclose(engine.run({"x": x})["logits"], x @ constants["matrix"])


def test_what_is_no_model_is_refused_in_one_line(start: Callable[[Path], Worker], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ModelRefused) as caught:
        start(tmp_path / "broken.onnx")
    assert len(str(caught.value).splitlines()) == 2
    assert "[graph]" in caught.value.remedy


def test_in_its_own_precision(start: Callable[..., Worker], model: Model) -> None:
    """bf16 where the processor has it, which is a matter of percents."""
    with start(model.path, precision="default") as engine:
        np.testing.assert_allclose(engine.run({"x": model.x})["logits"], model.expected(), rtol=0.05, atol=0.05)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InstalledTarget:
    """One that makes integers itself. Those of DeepSparse are ours."""
    return InstalledTarget(*installed(request.param, tmp_path_factory))


@pytest.fixture(scope="module")
def built(builder: InstalledTarget, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small model in int8, calibrated on what it is then run on, and more of the like."""
    return build(builder, model.path, tmp_path_factory.mktemp("built"), model.x)


def build(installed: InstalledTarget, path: Path, folder: Path, x: NDArray[Any], precision: Any = "int8") -> Built:
    more = np.random.default_rng(1).normal(size=(3 * BATCH, *x.shape[1:])).astype(np.float32)
    samples = {"x": np.concatenate([x, more])}
    cores = [max(os.sched_getaffinity(0))]
    return installed.build(path, folder / "small", precision=precision, batch_sizes=[BATCH], cpus=cores, inputs=samples)


def loaded(installed: InstalledTarget, path: Path, precision: Any) -> Worker:
    return installed.open(path, batch_size=BATCH, cpus=[max(os.sched_getaffinity(0))], precision=precision)


def test_builds_integers_that_compute_nearly_the_same(builder: InstalledTarget, built: Built, model: Model) -> None:
    """Steps of 1/64 of a weight's range at worst, and 1/255 of an activation's: 2 % of the largest output together."""
    expected = model.expected()
    with loaded(builder, built.path, "int8") as engine:
        found = engine.run({"x": model.x})["logits"]
        precision = engine.info()["precision"]
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert precision in {"onnxruntime": ["int8"], "openvino": ["u8", "i8", "i8, u8"]}[builder.target.name]


def test_the_weights_that_it_builds(builder: InstalledTarget, built: Built, model: Model) -> None:
    """Symmetric, and zero where they were."""
    assert [file.name for file in built.files] == {
        "onnxruntime": ["small.onnx"], "openvino": ["small.bin", "small.xml"],
    }[builder.target.name]  # fmt: skip
    read = {"onnxruntime": of_onnx, "openvino": of_openvino}[builder.target.name]
    arrays, offsets = read(built.path)
    assert offsets == []
    kernel = next(array for array in arrays if array.shape == model.kernel.shape)
    assert kernel.any()
    assert not kernel[model.kernel == 0].any()
    assert not (np.sign(kernel) * np.sign(model.kernel) < 0).any()
    assert len(arrays) == 2
    assert built.zeros is not None
    assert sorted(built.zeros.values()) == sorted((int((array == 0).sum()), array.size) for array in arrays)
    assert sum(zeros for zeros, _ in built.zeros.values()) >= (model.kernel == 0).sum()


def of_onnx(path: Path) -> tuple[list[NDArray[Any]], list[Any]]:
    """The int8 weights in a file, and their zero points that are not zero."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    read = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    weights = [(constants[name], constants[zero]) for name, _, zero in read if constants[name].dtype == np.int8]
    return [weight for weight, _ in weights], [zero for _, zero in weights if zero.any()]


def of_openvino(path: Path) -> tuple[list[NDArray[Any]], list[Any]]:
    """The same: a zero point would be subtracted."""
    layers = ET.parse(path).getroot().findall("layers/layer")
    content = path.with_suffix(".bin").read_bytes()
    found = []
    for layer in layers:
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and data.get("element_type") == "i8":
            shape = [int(size) for size in str(data.get("shape")).split(",")]
            offset = int(str(data.get("offset")))
            found.append(np.frombuffer(content, np.int8, int(np.prod(shape)), offset).reshape(shape))
    return found, [layer.get("name") for layer in layers if layer.get("type") == "Subtract"]


def test_attention_is_built_as_such(builder: InstalledTarget, built: Built, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    names = ("query", "key", "value")
    weights = {name: random.normal(scale=0.3, size=(8, 8)).astype(np.float32) for name in names}
    x = random.normal(size=(BATCH, 6, 8)).astype(np.float32)
    nodes = [
        *(helper.make_node("MatMul", ["x", name], [name[0]]) for name in names),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["logits"]),
    ]
    save(nodes, x.shape, x.shape, weights, tmp_path / "attention.onnx")
    made = build(builder, tmp_path / "attention.onnx", tmp_path, x)
    with loaded(builder, tmp_path / "attention.onnx", "fp32") as engine:
        expected = engine.run({"x": x})["logits"]
    with loaded(builder, made.path, "int8") as engine:
        found = engine.run({"x": x})["logits"]
    # The softmax makes more of steps. Products that saturate are off by half of the largest output.
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    if builder.target.name == "openvino":  # it keeps what it was asked for
        assert "TRANSFORMER" in made.path.read_text().upper()
        assert "TRANSFORMER" not in built.path.read_text().upper()


@pytest.mark.parametrize("precision", ["fp32", "default"])
def test_floats_are_not_built(builder: InstalledTarget, model: Model, tmp_path: Path, precision: Any) -> None:
    with pytest.raises(ModelRefused, match=f"ValueError: {precision} needs no model of its own"):
        build(builder, model.path, tmp_path, model.x, precision)
    assert not list(tmp_path.iterdir())
