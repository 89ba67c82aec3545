"""Lowering stands alone: an ONNX file and a deployment in, files out. No pair, no measurement, no runtime here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from acdc_export.config import Quantizer, load_target
from acdc_export.engines import Environment, InstalledTarget
from acdc_export.errors import GraphError, UsageError
from acdc_export.lowering import Calibrated, Calibration, Deployment, QuantizationInputs, calibrate, lower, quantize
from acdc_export.lowering.lower import micro_batches
from acdc_export.lowering.quantize import Range

from ..conftest import SIDE, network, weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "canonical.onnx"
    onnx.save(network(weights(1, 0.9)), path)
    return path


def deployment(tmp_path: Path, target: str, precision: str, **settings: Any) -> Deployment:
    definition = load_target(target)
    changed = replace(definition.precisions[precision], **settings)
    definition = replace(definition, precisions={**definition.precisions, precision: changed})
    return Deployment(InstalledTarget(definition, Environment(Path(sys.executable), {}, tmp_path)), precision)


def batch(path: Path) -> int | str:
    dimension = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    return dimension.dim_value or dimension.dim_param


def test_one_file_for_any_batch_size(source: Path, tmp_path: Path) -> None:
    models = lower(
        source, tmp_path / "m", deployment(tmp_path, "onnxruntime", "fp32"), [16, 1], scratch=tmp_path, cpus=[0]
    )
    assert models[1] is models[16]
    assert models[1].files == (tmp_path / "m.onnx",)
    assert batch(models[1].path) == "batch"
    assert models[1].micro_batch is None


def test_a_file_for_each_batch_size_and_a_choice_of_micro_batches(source: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, dict[int, int | str]]] = []

    def choose(batch_size: int, models: Mapping[int, Path]) -> int:
        asked.append((batch_size, {size: batch(path) for size, path in models.items()}))
        return 16

    place = deployment(tmp_path, "cpu", "fp32")
    models = lower(source, tmp_path / "m", place, [8, 16], scratch=tmp_path, cpus=[0], choose=choose)
    assert asked == [(8, {8: 8, 1: 1, 16: 16})]  # 16 suits the kernels as it is
    assert {size: (model.path.name, batch(model.path), model.micro_batch) for size, model in models.items()} == {
        8: ("m-b8.onnx", 16, 16),
        16: ("m-b16.onnx", 16, 16),
    }
    without = lower(source, tmp_path / "n", place, [8], scratch=tmp_path, cpus=[0])
    assert (batch(without[8].path), without[8].micro_batch) == (8, 8)
    assert micro_batches(8, ()) == [8]


def test_a_precision_is_what_its_table_says(source: Path, tmp_path: Path) -> None:
    """More passes, a scheme, its bits and the layers that stay in FP32: all of it settings, none of it code."""
    folded = tmp_path / "folded.onnx"
    quantize.fold(source, folded)
    watched = quantize.instrument(folded, tmp_path / "instrumented.onnx")
    calibration = Calibration(
        "min-max", 1, {name: Range(0.0, 4.0) for name in watched}, {name: np.zeros(32) for name in watched}
    )
    # The first convolution sees one channel.
    calibration.means["input"] = np.zeros(1)
    inputs = QuantizationInputs({"input": np.zeros((1, 1, SIDE, SIDE), np.float32)}, Calibrated(folded, calibration))

    def operators(**settings: Any) -> tuple[list[str], tuple[str, ...], int]:
        settings = {"quantizer_without_vnni": None, **settings}
        place = deployment(tmp_path, "cpu", "int8", **settings)
        model = lower(source, tmp_path / "q", place, [4], scratch=tmp_path, cpus=[0], inputs=inputs)[4]
        tensors = onnx.load(model.path).graph.initializer
        stored = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
        int8 = [onnx.numpy_helper.to_array(tensor) for tensor in stored]
        largest = max((int(np.abs(array.astype(int)).max()) for array in int8), default=0)
        return [step.name for step in model.graph.steps], model.kept, largest

    steps, kept, largest = operators(quantizer=Quantizer(weight_bits=8))
    assert (steps[-1], kept, largest) == ("convinteger", (), 127)
    assert operators(quantizer=Quantizer(weight_bits=7))[2] == 63
    _, kept, largest = operators(quantizer=Quantizer(least_macs=40.0))  # the head has 32, and the others follow it
    assert (set(kept), largest) == ({"conv1.weight", "conv2.weight", "head.weight"}, 0)
    steps, _, _ = operators(scheme="qdq", passes=("masks",), quantizer=Quantizer())
    assert steps[-2:] == ["masks", "qdq"]
    assert (
        lower(source, tmp_path / "q", deployment(tmp_path, "cpu", "fp32"), [4], scratch=tmp_path, cpus=[0])[4].kept
        == ()
    )


COMPILER = """\
import numpy as np
import onnx


def build(model, stem, precision, batch_sizes, batches):
    graph = onnx.load(model)
    if batches is not None or "QuantizeLinear" not in {node.op_type for node in graph.graph.node}:
        raise ValueError(f"not quantized, or with samples: {batches}")
    onnx.save(graph, stem + ".compiled")
    return stem + ".compiled"


def weights(path):
    arrays = [onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer]
    integers = [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
    return {str(at): [int((array == 0).sum()) - LOST, array.size] for at, array in enumerate(integers)}
"""


@pytest.mark.parametrize("lost", [0, 1])
def test_a_runtime_builds_its_own_form_of_what_our_scheme_quantized(source: Path, tmp_path: Path, lost: int) -> None:
    """Without samples; and its zeros are held against those of the quantized graph."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    (folder / "engine.py").write_text(COMPILER.replace("LOST", str(lost)))
    definition = load_target("onnxruntime")
    settings = replace(definition.precisions["int8"], scheme="full_integer", build=True, samples=False)
    definition = replace(definition, precisions={**definition.precisions, "int8": settings}, folder=folder)
    place = Deployment(InstalledTarget(definition, Environment(Path(sys.executable), {}, tmp_path)), "int8")
    folded, watching = tmp_path / "folded.onnx", tmp_path / "watching.onnx"
    quantize.fold(source, folded)
    watched = quantize.instrument(folded, watching, (), ["full_integer"])
    calibration = Calibration(
        "min-max",
        1,
        {name: Range(0.0, 4.0) for name in watched},
        {name: np.zeros(1 if name == "input" else 32) for name in watched},
    )
    inputs = QuantizationInputs({"input": np.zeros((1, 1, SIDE, SIDE), np.float32)}, Calibrated(folded, calibration))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if lost:
        with pytest.raises(GraphError, match="lost 3 zeros when it built int8"):
            lower(source, tmp_path / "model", place, [4], scratch=scratch, cpus=[0], inputs=inputs)
        return
    model = lower(source, tmp_path / "model", place, [4], scratch=scratch, cpus=[0], inputs=inputs)[4]
    assert model.files == (tmp_path / "model.compiled",)
    assert model.built is not None
    assert model.built.zeros == model.graph.steps[-1].zeros
    assert model.graph.steps[-1].name == "full_integer"
    assert model.graph.path.parent == scratch  # what was quantized stays there, for the dequantized reference
    assert model.int8 is not None
    assert (model.int8.quantized, model.int8.total) == (3, 3)


def test_layers_to_keep_are_known_by_our_schemes_alone(source: Path, tmp_path: Path) -> None:
    own = deployment(tmp_path, "onnxruntime", "int8")
    samples = {"input": np.zeros((1, 1, SIDE, SIDE), np.float32)}
    ready = calibrate(source, samples, [own], fp32=own, stem=tmp_path / "c", cpus=[0])
    assert (ready.calibrated, ready.quantization(own)) == (None, None)
    with pytest.raises(UsageError, match="--keep-fp32 conv2.weight"):
        calibrate(source, samples, [own], fp32=own, stem=tmp_path / "c", cpus=[0], keep=("conv2.weight",))
