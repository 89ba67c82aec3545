"""int8 from a pair to a bundle, in the real engine; and what is no calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acdc_export import export, verify
from acdc_export.errors import CalibrationError, UsageError
from acdc_export.inspection import inspect
from acdc_export.pair import Pair

from .conftest import SIDE
from .test_workflow import quick_target

pytestmark = pytest.mark.runtime


@pytest.fixture
def cpu(tmp_path: Path) -> str:
    return quick_target(tmp_path / "targets" / "cpu", "cpu", ("[1, 16]", "[16]"))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Samples like those that the pair made by hand is judged by, and others."""
    x = np.random.default_rng(3).normal(size=(50, 1, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "training.npz", x=x, y=np.zeros(50, dtype=np.int64))
    return tmp_path / "training.npz"


@pytest.mark.slow
def test_integers_in_deepsparse(pair: Pair, cpu: str, labelled: Path, training: Path, tmp_path: Path) -> None:
    bundle = export(pair, cpu, precision="int8", data=str(labelled), calibrate=str(training), out=tmp_path / "bundles")
    report = bundle.report
    assert bundle.path == tmp_path / "bundles" / "tiny-cpu-int8"
    assert report.precision == bundle.manifest.precision == "int8"
    assert report.structure.supported_ops == 1.0
    assert report.structure.operators["ConvInteger"] == 2
    assert report.structure.operators["MatMulInteger"] == 1
    assert report.structure.zeros is not None
    assert report.structure.zeros >= pair.record.pattern.layers["conv2.weight"].zeros
    assert report.size.sparse < 0.5 * 4 * sum(layer.total for layer in report.structure.layers)
    steps = [step.name for step in report.structure.steps]
    assert steps[:2] == ["canonical", "equalize"]
    assert steps[-1] == "convinteger"
    assert all(half.ok for halves in report.parity.values() for half in halves.values())
    # The twin as one would serve it instead: in what a runtime computes in by itself, and in its own int8.
    controls = {"dense@onnxruntime", "dense@onnxruntime-int8", "dense@openvino-default", "dense@openvino-int8"}
    assert set(report.latency[0].variants) == {"sparse", "dense", *controls}
    assert report.quantization is not None
    assert report.accuracy is not None
    assert report.quantization.sparse == report.accuracy.sparse
    assert report.quantization.drop.low <= report.quantization.drop.value <= report.quantization.drop.high
    assert "quantization.drop <= 1.0" in {gate.gate for gate in report.gates}
    checked = verify(bundle.path, target=cpu)
    assert all(check.status == "pass" for check in checked.checks if check.gate.startswith(("files", "golden")))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_integers_that_a_runtime_makes_by_itself(
    pair: Pair, labelled: Path, training: Path, tmp_path: Path, name: str
) -> None:
    target = quick_target(tmp_path / "targets" / name, name, ("[1, 16]", "[16]"))
    options = {"data": str(labelled), "calibrate": str(training), "out": tmp_path / "bundles"}
    bundle = export(pair, target, precision="int8", **options)  # type: ignore[arg-type]
    report = bundle.report
    assert report.structure.steps[-1].name == f"{name}'s own int8"
    assert report.structure.steps[-1].zeros >= report.structure.steps[-2].zeros > 0
    assert report.structure.steps[-1].total == report.structure.steps[-2].total
    assert report.size.sparse == sum(path.stat().st_size for path in (bundle.path / "model").iterdir())
    (weights,) = (path for path in (bundle.path / "model").iterdir() if path.suffix in (".onnx", ".bin"))
    assert weights.stat().st_size < 4 * sum(layer.total for layer in report.structure.layers)
    parity = report.parity["16"]["sparse"]
    assert 1e-4 < parity.required < 0.5  # of float, which integers are not
    assert report.quantization is not None
    assert "quantization.drop <= 1.0" in {gate.gate for gate in report.gates}
    checked = verify(bundle.path, target=target)
    assert all(check.status == "pass" for check in checked.checks if check.gate.startswith(("files", "golden")))
    (part,) = inspect(bundle.path).parts  # zeros are counted, or it is said why not
    assert bool(part.weights) == (name == "onnxruntime")
    assert bool(part.uncounted) == (name == "openvino")
    with pytest.raises(UsageError, match="there is no such layer") as caught:
        export(pair, target, precision="int8", keep_fp32=["conv2.weight"], **options)  # type: ignore[arg-type]
    assert "Runtimes that quantize by themselves keep none" in caught.value.remedy


COMPILED = """\

def build(model, stem, precision, batch_sizes, batches):
    assert batches is None, "the graph is quantized already"
    onnxruntime.InferenceSession(model)
    shutil.copy(model, stem + ".compiled")
    return stem + ".compiled"


def weights(path):
    return None
"""


def test_integers_of_ours_that_a_runtime_compiles(pair: Pair, labelled: Path, training: Path, tmp_path: Path) -> None:
    """A scheme and `build` in one precision: judged as what we quantized, shipped as what the runtime made of it."""
    target = quick_target(
        tmp_path / "targets" / "onnxruntime", "onnxruntime", ("[1, 16]", "[16]"),
        ("samples = true", 'scheme = "full_integer"'), ("tolerance = 5e-1", "tolerance = 1e-1"),
    )  # fmt: skip
    engine = Path(target) / "engine.py"
    whole = engine.read_text()
    engine.write_text("import shutil\n" + whole[: whole.index("\ndef build")] + COMPILED)
    bundle = export(
        pair, target, precision="int8", data=str(labelled), calibrate=str(training), out=tmp_path / "bundles",
        gates=["accuracy.sparse >= 99.9", "quantization.drop <= 5"],
    )  # fmt: skip
    report = bundle.report
    assert any("whose INT8 costs most: " in note and ".weight" in note for note in report.notes)
    assert [model.file for model in bundle.manifest.models] == ["model.compiled"]
    assert report.structure.steps[-1].name == "full_integer"
    assert report.structure.int8_layers == (3, 3)
    assert report.structure.operators["QuantizeLinear"] == 4  # the input, and what goes on to the next layer
    assert all(half.ok for halves in report.parity.values() for half in halves.values())
    assert report.parity["16"]["sparse"].required < 0.05  # of the dequantized reference
    assert report.quantization is not None
    assert report.quantization.drop.value < 3
    checked = verify(bundle.path, target=target)
    assert all(check.status == "pass" for check in checked.checks if check.gate.startswith(("files", "golden")))


@pytest.mark.slow
def test_a_gate_that_integers_miss_names_the_layers_that_cost_most(
    pair: Pair, cpu: str, labelled: Path, training: Path, tmp_path: Path
) -> None:
    report = export(
        pair, cpu, precision="int8", data=str(labelled), calibrate=str(training), out=tmp_path / "bundles",
        gates=["accuracy.sparse >= 99.9"], keep_fp32=["head.weight"], budget=2,
    ).report  # fmt: skip
    assert report.exit_code == 1
    (note,) = (note for note in report.notes if "costs most" in note)
    assert "conv1.weight" in note
    assert "conv2.weight" in note
    assert "head.weight" not in note
    assert report.structure.operators["Gemm"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrate": None}, "int8 needs samples"),
        ({"keep_fp32": ["conv3.weight"]}, r"there is no such layer \(did you mean 'conv2.weight'\?\)"),
        ({"gates": ["quantization.drop <= 0.5"], "precision": "fp32"}, "fp32 is not quantized"),
    ],
)
def test_what_can_not_be(
    pair: Pair, cpu: str, training: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    options = {"precision": "int8", "calibrate": str(training), **change}
    with pytest.raises(UsageError, match=message):
        export(pair, cpu, out=tmp_path / "bundles", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "bundles" / "tiny-cpu-int8").exists()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            np.full((20, 1, SIDE, SIDE), 128.0) + np.arange(20)[:, None, None, None] * 6,
            CalibrationError,
            "normalisation",
        ),
        (np.zeros((20, 1, SIDE, SIDE)), CalibrationError, "normalisation"),
        (np.zeros((20, 3, SIDE, SIDE)), UsageError, "the network takes"),
        (np.zeros((0, 1, SIDE, SIDE)), UsageError, "holds no samples"),
    ],
)
def test_samples_that_are_unlike_those_of_training(
    pair: Pair, cpu: str, tmp_path: Path, x: np.ndarray, error: type[Exception], message: str
) -> None:
    np.savez(tmp_path / "odd.npz", x=x.astype(np.float32), y=np.zeros(len(x), dtype=np.int64))
    with pytest.raises(error, match=message):
        export(pair, cpu, precision="int8", calibrate=str(tmp_path / "odd.npz"), out=tmp_path / "bundles")
