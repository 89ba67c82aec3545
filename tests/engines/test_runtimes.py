"""The real runtimes, each in its own environment, which is kept from one run of the tests to the next."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acdc_export.config import Target, load_target
from acdc_export.engines import Environment, Worker, ensure, licenses, open_engine, status
from acdc_export.errors import ModelRefused, RuntimeUnavailable
from acdc_export.progress import Terminal

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
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        nodes = [
            helper.make_node("Conv", ["x", "kernel"], ["convolved"]),
            helper.make_node("Relu", ["convolved"], ["hidden"]),
            helper.make_node("GlobalAveragePool", ["hidden"], ["average"]),
            helper.make_node("Flatten", ["average"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (BATCH, 10))],
            [numpy_helper.from_array(self.kernel, "kernel"), numpy_helper.from_array(self.matrix, "matrix")],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), self.path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "cpu"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Environment]:
    target = load_target(request.param)
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
        return target, ensure(target, accept_licenses=accepted, progress=Terminal())


@pytest.fixture
def start(runtime: tuple[Target, Environment]) -> Callable[..., Worker]:
    core = max(os.sched_getaffinity(0))

    def open_it(path: Path) -> Worker:
        return open_engine(*runtime, path, batch_size=BATCH, threads=1, cpus=[core])

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


def test_what_is_no_model_is_refused_in_one_line(start: Callable[[Path], Worker], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ModelRefused) as caught:
        start(tmp_path / "broken.onnx")
    assert len(str(caught.value).splitlines()) == 2
    assert "[graph]" in caught.value.remedy
