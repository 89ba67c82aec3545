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
from acdc_export.engines import InstalledTarget, Worker, built_here, environment
from acdc_export.errors import BundleError, ModelRefused, RuntimeUnavailable
from acdc_export.files import sha256
from acdc_export.inspection import inspect
from acdc_export.pair import Pair, write

from ..conftest import SIDE, fill, logits, network, record, weights

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="its kernels are for x86-64"),
]
CORE = max(os.sched_getaffinity(0))
ENDINGS = ("c", "h", "onnx", "plan.json", "so", "weights")
MODEL = [f"model.{ending}" for ending in ENDINGS]
TWIN = [f"dense.{ending}" for ending in ENDINGS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle in the folder `bundles`; beside it in `home` is what the machine that made it records of it."""
    folder = tmp_path_factory.mktemp("made")
    pair = write(folder / "pairs" / "tiny", record(), fill)
    x = np.random.default_rng(11).normal(size=(200, 1, SIDE, SIDE)).astype(np.float32)
    np.savez(folder / "labelled.npz", x=x, y=logits(network(weights(1, 0.0)), x).argmax(axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_here, "home", lambda: folder / "home")  # the environments of controls are everybody's
        return export(pair, "native", data=str(folder / "labelled.npz"), budget=4, out=folder / "bundles")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(built_here, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def bundle(made: Bundle, home: Path, tmp_path: Path) -> Path:
    """A bundle on the machine that made it."""
    shutil.copytree(made.path.parents[1] / "home", home)
    return shutil.copytree(made.path, tmp_path / made.path.name)


@pytest.fixture
def elsewhere(bundle: Path, home: Path) -> Path:
    """A bundle on another machine than the one that made it."""
    shutil.rmtree(home)
    return bundle


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The machine has none; where one was looked for."""
    monkeypatch.setenv("CC", str(tmp_path / "no-cc"))
    return str(tmp_path / "no-cc")


def verified(bundle: Path, **options: object) -> tuple[dict[str, str], str]:
    """The verdicts on files and outputs, and the notes; how it was judged when it was made is a matter of time."""
    verification = verify(bundle, **options)  # type: ignore[arg-type]
    verdicts = {verdict.gate: verdict.status for verdict in verification.checks}
    verdicts.pop("gates, when it was made", None)
    return verdicts, " ".join(verification.notes)


WORKS = dict.fromkeys(("files", "golden outputs, batch 1", "golden outputs, batch 16"), "pass")


@pytest.mark.slow
def test_a_bundle_holds_all_that_makes_the_library_again(made: Bundle) -> None:
    report = made.report
    assert sorted(path.name for path in (made.path / "model").iterdir()) == MODEL
    assert sorted(path.name for path in (made.path / "evidence").glob("dense*")) == TWIN
    assert [(model.file, model.batch_size) for model in made.manifest.models] == [("model.so", None)]
    assert report.target.runtime == "native"
    assert report.target.deployable
    assert report.target.computes_in == "fp32"
    assert report.target.instruction_set in ("avx512_vnni", "avx512", "avx2_vnni", "avx2")
    assert report.size.sparse == (made.path / "model" / "model.so").stat().st_size
    assert [layer.operator for layer in report.profile].count("Conv") == 2
    assert all(half.ok and half.required < 1e-5 for halves in report.parity.values() for half in halves.values())


@pytest.mark.slow
def test_the_best_dense_alternative_is_what_counts(made: Bundle) -> None:
    report = made.report
    variants = {"sparse", "dense", "dense@onnxruntime", "dense@openvino-default"}
    assert {workload.batch_size: set(workload.variants) for workload in report.latency} == {1: variants, 16: variants}
    statuses = {gate.gate: gate.status for gate in report.gates}
    assert set(statuses) == {"accuracy.drop <= 1.0", "speedup >= 1.0", "speedup.vs_control >= 1.0", "parity <= 0.001"}
    assert statuses["speedup.vs_control >= 1.0"] != "not measured"
    assert str(made).splitlines()[0].endswith("than the fastest dense alternative")


@pytest.mark.slow
def test_zeros_are_those_in_the_library(made: Bundle) -> None:
    """By the names of weights, though the compiler goes by those of nodes."""
    structure = made.report.structure
    assert structure.steps[-1].name == "native's own fp32"
    assert structure.steps[-1].total == structure.steps[-2].total
    assert structure.zeros == record().pattern.layers["conv2.weight"].zeros
    assert "built its own form" not in " ".join(made.report.notes)
    (part,) = inspect(made.path).parts
    assert part.title.endswith("model.so, compiled from model.onnx")
    assert sum(weight.zeros for weight in part.weights) == structure.steps[-1].zeros
    plan = json.loads((made.path / "model" / "model.plan.json").read_text())
    assert sum(layer["zeros"] for layer in plan["layers"]) == structure.steps[-1].zeros


@pytest.mark.slow
def test_the_library_needs_no_more_than_ctypes(made: Bundle) -> None:
    """As one deploys it: the header's functions, from any language."""
    x, expected = made.golden_inputs["input"], made.golden_outputs(16)["logits"]
    outputs = np.empty_like(expected)
    library = ctypes.CDLL(str(made.model(16)))
    created = ctypes.c_void_p()
    assert library.model_create(1, None, 0, ctypes.byref(created)) == 0
    arrays = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, outputs)]
    assert library.model_run(created, len(x), *arrays) == 0
    library.model_destroy(created)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    assert "int model_create(" in (made.path / "model" / "model.h").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_where_it_was_built_it_runs_as_it_is(bundle: Path) -> None:
    verdicts, notes = verified(bundle)
    assert verdicts == WORKS
    assert "not built here" not in notes


@pytest.mark.slow
def test_elsewhere_the_same_library_is_built_from_onnx_and_plan(elsewhere: Path) -> None:
    """Whatever the C says: it is not looked at."""
    program = elsewhere / "model" / "model.c"
    program.write_text("#error never compiled\n")
    document = json.loads((elsewhere / "manifest.json").read_text())
    document["files"]["model/model.c"] = {"sha256": sha256(program), "bytes": program.stat().st_size}
    (elsewhere / "manifest.json").write_text(json.dumps(document))
    verdicts, notes = verified(elsewhere)
    assert verdicts == WORKS
    assert "What ran was built anew from the bundle's ONNX; it is the same, byte for byte." in notes
    assert built_here.is_known(sha256(elsewhere / "model" / "model.so"))


@pytest.mark.slow
def test_elsewhere_without_a_compiler_it_runs_if_it_is_trusted(elsewhere: Path, no_compiler: str) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        verify(elsewhere)
    assert no_compiler in caught.value.message
    assert f"--trust {elsewhere}" in caught.value.remedy
    verdicts, notes = verified(elsewhere, trust=elsewhere)
    assert verdicts == WORKS
    assert "It ran as it is: the bundle is trusted." in notes
    finding = check(elsewhere, self_test=True, trust=elsewhere, budget=1, out=elsewhere.parent / "checks")
    assert "It ran as it is: the bundle is trusted." in " ".join(finding.notes)


@pytest.mark.slow
def test_an_altered_library_is_refused(bundle: Path) -> None:
    library = bundle / "model" / "model.so"
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)
    (files, *_) = verify(bundle, trust=bundle).checks
    assert (files.status, files.detail) == ("fail", "model/model.so was altered (its SHA-256 differs)")
    with pytest.raises(BundleError, match="model.so was altered"):
        check(bundle, self_test=True, trust=bundle, out=bundle.parent / "checks")


def test_without_a_compiler_nothing_is_trained_or_written(pair: Pair, tmp_path: Path, no_compiler: str) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        run("digits", "native", runs=tmp_path / "runs", out=tmp_path / "bundles")
    assert caught.value.message.startswith("native: ")
    assert no_compiler in caught.value.message
    assert "CC" in caught.value.remedy
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RuntimeUnavailable, match=no_compiler):
        export(pair, "native", out=tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


@pytest.mark.slow
def test_integers_from_a_pair_to_a_library(
    pair: Pair, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our scheme quantizes, and what is compiled is its graph."""
    monkeypatch.setattr(built_here, "home", lambda: tmp_path / "home")
    x = np.random.default_rng(3).normal(size=(50, 1, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "training.npz", x=x, y=np.zeros(50, dtype=np.int64))
    bundle = export(
        pair,
        "native",
        precision="int8",
        data=str(labelled),
        calibrate=str(tmp_path / "training.npz"),
        budget=4,
        out=tmp_path / "bundles",
    )
    report, structure = bundle.report, bundle.report.structure
    assert bundle.path.name == "tiny-native-int8"
    assert sorted(path.name for path in (bundle.path / "model").iterdir()) == MODEL
    assert report.target.computes_in == "int8"
    assert structure.int8_layers == structure.dense_int8_layers == (3, 3)
    assert structure.zeros is not None
    assert structure.zeros >= record().pattern.layers["conv2.weight"].zeros
    assert [(step.name, step.total) for step in structure.steps[-2:]] == [
        ("full_integer", structure.steps[0].total),
        ("native's own int8", structure.steps[0].total),
    ]
    assert all(half.ok for halves in report.parity.values() for half in halves.values())
    controls = {"dense@onnxruntime", "dense@onnxruntime-int8", "dense@openvino-default", "dense@openvino-int8"}
    assert set(report.latency[0].variants) == {"sparse", "dense", *controls}
    assert report.quantization is not None
    assert report.quantization.drop.value < 3
    assert {"quantization.drop <= 1.0", "speedup.vs_control >= 1.0"} <= {gate.gate for gate in report.gates}
    assert verified(bundle.path)[0] == WORKS


def installed() -> InstalledTarget:
    return InstalledTarget(load_target("native"), environment.host())


@pytest.fixture
def engine(made: Bundle) -> Iterator[Worker]:
    with installed().open(made.model(1), batch_size=1, cpus=[CORE]) as engine:
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_any_batch_size(engine: Worker, batch_size: int) -> None:
    x = np.random.default_rng(1).normal(size=(batch_size, 1, SIDE, SIDE)).astype(np.float32)
    expected = logits(network(weights(1, 0.9)), x)
    np.testing.assert_allclose(engine.run({"input": x})["logits"], expected, rtol=1e-4, atol=1e-4)
    assert (engine.time({"input": x}, 3).nanoseconds > 0).all()


@pytest.mark.slow
def test_wrong_inputs_are_refused(engine: Worker) -> None:
    x = np.zeros((1, 1, SIDE, SIDE), np.float32)
    for wrong in ({"input": x.astype(np.float64)}, {"input": x[:, :, :1]}, {"y": x}, {"input": x[:0]}):
        for ask in (engine.run, lambda inputs: engine.time(inputs, 1)):
            with pytest.raises(ModelRefused):
                ask(wrong)
    assert engine.run({"input": x})["logits"].shape == (1, 10)


def test_an_operator_that_it_does_not_know_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Acosh", ["x"], ["y"], name="the last")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 2, 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "odd", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    with pytest.raises(ModelRefused, match=r"refused `build`: GraphError: .*Acosh.*the last"):
        installed().build(
            tmp_path / "x.onnx", tmp_path / "model", precision="fp32", batch_sizes=[1], cpus=[CORE], inputs={}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"not ELF")
    with pytest.raises(ModelRefused, match=r"refused `load`: EngineError: .*model.so can't be loaded"):
        installed().open(tmp_path / "model.so", batch_size=1, cpus=[CORE])


@pytest.fixture
def module() -> ModuleType:
    """Its engine.py, imported here."""
    spec = importlib.util.spec_from_file_location("engine", resources.root("targets") / "native" / "engine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("flags", "told"), [("avx2 avx512_vnni amx_int8", True), ("avx2 avx512_vnni", False)])
def test_amx_is_told(module: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: str, told: bool) -> None:
    """No machine at hand has it: what the kernel would say of one stands in."""
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


@pytest.mark.slow
def test_a_weight_has_its_initializers_name(module: ModuleType, made: Bundle, tmp_path: Path) -> None:
    """Also where its node has none, and behind DequantizeLinear. Of no node that is known, a layer's own remains."""
    assert set(module.weights(str(made.model(1)))) == {"conv1.weight", "conv2.weight", "head.weight"}
    nodes = [
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["w"], axis=1, name="dequantize"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("MatMul", ["y", "v"], ["z"]),
    ]
    arrays = {"integers": np.zeros((2, 2), np.int8), "scale": np.ones(2, np.float32), "v": np.ones((2, 2), np.float32)}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xz"]
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)), tmp_path / "m.onnx")
    layers = [{"name": name, "zeros": at, "weights": 4} for at, name in enumerate(("first", "MatMul_2", "another"))]
    (tmp_path / "m.plan.json").write_text(json.dumps({"layers": layers}))
    assert module.weights(str(tmp_path / "m.so")) == {"integers": [0, 4], "v": [1, 4], "another": [2, 4]}
