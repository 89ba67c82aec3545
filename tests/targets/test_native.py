"""The target `native` with its real compiler: from a pair to a bundle, on the machine that made it and on another."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acdc_export import check, export, resources, run, verify
from acdc_export.bundle import Bundle
from acdc_export.config import load_target
from acdc_export.engines import Built, InstalledTarget, Worker, built_here, environment
from acdc_export.errors import BundleError, ModelRefused, RuntimeUnavailable
from acdc_export.files import sha256
from acdc_export.inspection import inspect
from acdc_export.pair import Pair, write

from ..conftest import fill, record
from ..test_workflow import quick_target

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="its kernels are for x86-64"),
]
CORE = max(os.sched_getaffinity(0))
ENDINGS = ("c", "h", "onnx", "plan.json", "so", "weights")
MODEL = [f"model.{ending}" for ending in ENDINGS]
TWIN = [f"dense.{ending}" for ending in ENDINGS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, the target that made it (without controls), and the home folder of the machine."""
    folder = tmp_path_factory.mktemp("exported")
    pair = write(folder / "pairs" / "tiny", record(), fill)
    target = quick_target(
        folder / "native", "native", ('["onnxruntime", "openvino"]', "[]"), ('"speedup.vs_control >= 1.0",', "")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACDC_EXPORT_HOME", str(folder / "home"))
        export(pair, target, gates=["sparsity >= 0.5"], out=folder / "bundles", budget=2)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACDC_EXPORT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(exported: Path, home: Path, tmp_path: Path) -> Path:
    """A bundle on the machine that made it."""
    shutil.copytree(exported / "home", home)
    return shutil.copytree(exported / "bundles" / "tiny-native", tmp_path / "tiny-native")


@pytest.fixture
def elsewhere(bundle: Path, home: Path) -> Path:
    """A bundle on another machine than the one that made it."""
    shutil.rmtree(home)
    return bundle


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The machine has none; what is said of it."""
    monkeypatch.setenv("CC", str(tmp_path / "no-cc"))
    return f"native: The C compiler that the variable CC names is not there: {tmp_path / 'no-cc'}"


def test_a_bundle_holds_all_that_makes_the_library_again(exported: Path) -> None:
    bundle = Bundle.load(exported / "bundles" / "tiny-native")
    report = bundle.report
    assert bundle.passed, bundle
    assert sorted(path.name for path in (bundle.path / "model").iterdir()) == MODEL
    assert sorted(path.name for path in (bundle.path / "evidence").glob("dense*")) == TWIN
    assert [(model.file, model.batch_size) for model in bundle.manifest.models] == [("model.so", None)]
    assert report.target.runtime == "native"
    assert report.target.deployable
    assert report.target.computes_in == "fp32"
    assert report.target.instruction_set in ("avx512_vnni", "avx512", "avx2_vnni", "avx2")
    assert report.size.sparse == (bundle.path / "model" / "model.so").stat().st_size
    assert {workload.batch_size for workload in report.latency} == {1, 16}
    assert [layer.operator for layer in report.profile].count("Conv") == 2
    assert all(half.ok and half.required < 1e-5 for halves in report.parity.values() for half in halves.values())


def test_zeros_are_those_in_the_library(exported: Path) -> None:
    """By the names of weights, though the compiler goes by those of nodes."""
    bundle = Bundle.load(exported / "bundles" / "tiny-native")
    structure = bundle.report.structure
    assert structure.steps[-1].name == "native's own fp32"
    assert structure.steps[-1].total == structure.steps[-2].total
    assert structure.zeros == record().pattern.layers["conv2.weight"].zeros
    assert "built its own form" not in " ".join(bundle.report.notes)
    (part,) = inspect(bundle.path).parts
    assert part.title.endswith("model.so, compiled from model.onnx")
    assert sum(weight.zeros for weight in part.weights) == structure.steps[-1].zeros


def test_the_library_needs_no_more_than_ctypes(exported: Path) -> None:
    """As one deploys it: the header's functions, from any language."""
    model = exported / "bundles" / "tiny-native" / "model"
    golden = np.load(exported / "bundles" / "tiny-native" / "evidence" / "golden.npz")
    x = golden["input.input"]
    logits = np.empty_like(golden["b16.logits"])
    library = ctypes.CDLL(str(model / "model.so"))
    created = ctypes.c_void_p()
    assert library.model_create(1, None, 0, ctypes.byref(created)) == 0
    arrays = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, logits)]
    assert library.model_run(created, len(x), *arrays) == 0
    library.model_destroy(created)
    np.testing.assert_allclose(logits, golden["b16.logits"], rtol=1e-4, atol=1e-4)
    assert "model_create" in (model / "model.h").read_text()


def test_where_it_was_built_it_is_verified_as_it_is(bundle: Path, no_compiler: str) -> None:
    verification = verify(bundle)
    assert [verdict.status for verdict in verification.checks] == ["pass"] * 4
    assert "not built here" not in " ".join(verification.notes)


def test_elsewhere_the_same_library_is_built_from_onnx_and_plan(elsewhere: Path) -> None:
    """Whatever the C says: it is not looked at."""
    program = elsewhere / "model" / "model.c"
    program.write_text("#error never compiled\n")
    document = json.loads((elsewhere / "manifest.json").read_text())
    document["files"]["model/model.c"] = {"sha256": sha256(program), "bytes": program.stat().st_size}
    (elsewhere / "manifest.json").write_text(json.dumps(document))
    verification = verify(elsewhere)
    assert verification.passed
    (note,) = (note for note in verification.notes if "not built here" in note)
    assert note.endswith("What ran was built anew from the bundle's ONNX; it is the same, byte for byte.")
    assert built_here.is_known(sha256(elsewhere / "model" / "model.so"))


def test_elsewhere_without_a_compiler_it_runs_if_it_is_trusted(elsewhere: Path, no_compiler: str) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        verify(elsewhere)
    assert no_compiler in caught.value.message
    assert f"--trust {elsewhere}" in caught.value.remedy
    verification = verify(elsewhere, trust=elsewhere)
    assert verification.passed
    assert "It ran as it is: the bundle is trusted." in " ".join(verification.notes)
    finding = check(elsewhere, self_test=True, trust=elsewhere, budget=1, out=elsewhere.parent / "checks")
    assert "It ran as it is: the bundle is trusted." in " ".join(finding.notes)


def test_an_altered_library_is_refused(bundle: Path) -> None:
    library = bundle / "model" / "model.so"
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)
    verification = verify(bundle, trust=bundle)
    assert [(verdict.gate, verdict.status) for verdict in verification.checks] == [("files", "fail")]
    assert "model/model.so was altered (its SHA-256 differs)" in verification.checks[0].detail
    with pytest.raises(BundleError, match="model.so was altered"):
        check(bundle, self_test=True, trust=bundle, out=bundle.parent / "checks")


def test_without_a_compiler_nothing_is_trained_or_written(pair: Pair, tmp_path: Path, no_compiler: str) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        run("digits", "native", runs=tmp_path / "runs", out=tmp_path / "bundles")
    assert str(caught.value) == f"{no_compiler}\nUnset CC, or install it."
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RuntimeUnavailable, match="The C compiler"):
        export(pair, "native", out=tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


def test_on_the_built_in_target_the_best_dense_alternative_is_what_counts(
    pair: Pair, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_here, "home", lambda: tmp_path / "home")
    made = export(pair, "native", data=str(labelled), budget=4, out=tmp_path / "bundles")
    report, headline = made.report, str(made).splitlines()[0]
    assert set(report.latency[0].variants) == {"sparse", "dense", "dense@onnxruntime", "dense@openvino-default"}
    statuses = {gate.gate: gate.status for gate in report.gates}
    assert set(statuses) == {"accuracy.drop <= 1.0", "speedup >= 1.0", "speedup.vs_control >= 1.0", "parity <= 0.001"}
    assert statuses["speedup.vs_control >= 1.0"] != "not measured"
    assert headline.endswith("than the fastest dense alternative")


# The engine by itself.


def build(model: Path, stem: Path) -> Built:
    installed = InstalledTarget(load_target("native"), environment.host())
    return installed.build(model, stem, precision="fp32", batch_sizes=[1], cpus=[CORE], inputs={})


def start(library: Path, batch_size: int = 1) -> Worker:
    installed = InstalledTarget(load_target("native"), environment.host())
    return installed.open(library, batch_size=batch_size, cpus=[CORE])


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    matrix = np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)
    matrix[matrix < 0.5] = 0
    return matrix


def save(path: Path, matrix: np.ndarray, operator: str = "Relu") -> Path:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"], name="product"),
        helper.make_node(operator, ["product"], ["logits"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, matrix: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACDC_EXPORT_HOME", str(folder / "home"))
        built = build(save(folder / "source.onnx", matrix), folder / "model")
    assert built.path == folder / "model.so"
    assert sorted(path.name for path in built.files) == MODEL
    assert built.deployed == (built.path,)
    assert built.zeros == {"matrix": (int((matrix == 0).sum()), matrix.size)}
    return built.path


@pytest.fixture
def engine(library: Path) -> Iterator[Worker]:
    with start(library) as engine:
        yield engine


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_any_batch_size(engine: Worker, matrix: np.ndarray, batch_size: int) -> None:
    x = np.random.default_rng(1).normal(size=(batch_size, 3, 2, 2)).astype(np.float32)
    expected = np.maximum(x.reshape(batch_size, 12) @ matrix, 0)
    np.testing.assert_allclose(engine.run({"x": x})["logits"], expected, rtol=1e-5, atol=1e-5)
    assert (engine.time({"x": x}, 3).nanoseconds > 0).all()


def test_wrong_inputs_are_refused(engine: Worker) -> None:
    x = np.zeros((1, 3, 2, 2), np.float32)
    for wrong in ({"x": x.astype(np.float64)}, {"x": x[:, :, :1]}, {"y": x}, {"x": x[:0]}):
        for ask in (engine.run, lambda inputs: engine.time(inputs, 1)):
            with pytest.raises(ModelRefused):
                ask(wrong)
    assert engine.run({"x": x})["logits"].shape == (1, 10)


def test_it_says_what_it_is_and_what_takes_time(engine: Worker) -> None:
    info = engine.info()
    assert info["runtime"] == "native"
    assert info["precision"] == "fp32"
    profile = engine.profile({"x": np.zeros((1, 3, 2, 2), np.float32)}, 3)
    assert profile is not None
    assert "MatMul" in {layer.operator for layer in profile}


def test_an_operator_that_it_does_not_know_is_named(tmp_path: Path, matrix: np.ndarray) -> None:
    source = save(tmp_path / "source.onnx", matrix, "Acosh")
    with pytest.raises(ModelRefused, match=r"refused `build`: GraphError: .*Acosh.*last"):
        build(source, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"not ELF")
    with pytest.raises(ModelRefused, match="refused `load`: EngineError: .*model.so can't be loaded"):
        start(tmp_path / "model.so")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its engine.py, imported here."""
    spec = importlib.util.spec_from_file_location("engine", resources.root("targets") / "native" / "engine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("flags", "told"), [("avx2 avx512_vnni amx_int8", True), ("avx2 avx512_vnni", False)])
def test_amx_is_told(module: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: str, told: bool) -> None:
    """No machine at hand has it: what the kernel says of one stands in."""
    library = SimpleNamespace(version="1", instruction_set="avx512_vnni", precision="fp32")
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags\t\t: fpu {flags} sse\n")
    notes = module.Model(library).info()["notes"]
    assert ["a dense INT8 network may be faster here" in note for note in notes] == [True] * told


def test_without_onnx_it_says_what_to_install(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(module.Unavailable) as caught:
        module.can_build("fp32")
    assert caught.value.message == "onnx is not installed, which compiling needs."
    assert caught.value.remedy == "Run: pip install 'acdc-export[export]'"
