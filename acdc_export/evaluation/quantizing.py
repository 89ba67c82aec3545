"""What a quantized deployment adds: calibration before it, the dequantized reference, and what INT8 costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import lowering
from ..data import Data
from ..errors import CalibrationError
from ..evidence import batches
from ..evidence.engine import Engine
from ..lowering import Deployment, LoweredModel, Quantization, quantize
from ..machine import Machine
from ..pair import HALVES, Half, Pair, named
from ..progress import Progress
from .setup import Evaluation, Int8

SAMPLES = 128
"""How many samples calibration takes."""

_ROWS = 8  # that are read at once


def calibrate(
    pair: Pair,
    data: Data,
    deployments: Sequence[Deployment],
    *,
    fp32: Deployment,
    folder: Path,
    machine: Machine,
    progress: Progress,
    keep: tuple[str, ...] = (),
) -> Int8:
    """Calibrate both halves for the deployments, each by itself, on the same samples; files of it go into `folder`.

    Raises:
        CalibrationError: no samples, or samples unlike the pair's inputs.
        UsageError: a layer to keep in FP32 that isn't there.
    """
    samples = _samples(pair, data)
    halves = {}
    with progress.task("calibration", len(HALVES)) as advance:
        for half in HALVES:
            halves[half] = lowering.calibrate(
                pair.onnx(half),
                samples,
                deployments,
                fp32=fp32,
                stem=folder / half,
                cpus=machine.cpus,
                keep=keep,
                batch_size=pair.record.batch_size,
            )
            advance()
    return Int8(halves, fp32)


def _samples(pair: Pair, data: Data) -> dict[str, NDArray[Any]]:
    """The calibration samples, by input."""
    expected = replace(pair.expected, labelled=False, unlike=CalibrationError)
    parts = [inputs for inputs, _ in named(data.sample(SAMPLES), expected, _ROWS)]
    if not parts:
        raise CalibrationError("There are no samples to calibrate with.", "Give some of the training split.")
    return {spec.name: np.concatenate([inputs[spec.name] for inputs in parts]) for spec in pair.record.inputs}


def dequantized_references(
    evaluation: Evaluation, models: Mapping[tuple[Half, int], LoweredModel]
) -> dict[tuple[Half, int], dict[str, NDArray[Any]]]:
    """What the graphs that we quantized mean: their outputs for the pair's reference inputs, computed in FP32.

    Empty where we quantized nothing.
    """
    if evaluation.int8 is None or evaluation.deployment.settings.scheme is None:
        return {}
    references = {}
    for (half, size), model in models.items():
        path = evaluation.scratch / f"dequantized-{half}-{size}.onnx"
        quantize.dequantized.write(model.graph.path, path)
        rows = model.micro_batch or size
        with closing(evaluation.open(path, rows, evaluation.int8.fp32)) as engine:
            references[half, size] = batches.run(engine, evaluation.pair.reference.inputs, rows)
    return references


def open_in_fp32(evaluation: Evaluation, int8: Int8, half: Half) -> Engine:
    """A half as it was before it was quantized."""
    return evaluation.open(evaluation.pair.onnx(half), evaluation.gated, int8.fp32)


def costliest(evaluation: Evaluation, int8: Int8, count: int = 3) -> list[str]:
    """The layers that move the sparse half's outputs most, when each of them alone is quantized by our scheme."""
    quantization = int8.halves["sparse"].quantization(evaluation.deployment)
    assert quantization is not None
    inputs = evaluation.pair.reference.inputs
    layers = quantize.layer_names(quantization.calibrated.folded)
    names = [name for name in layers if name not in quantization.keep]
    with closing(open_in_fp32(evaluation, int8, "sparse")) as engine:
        expected = batches.run(engine, inputs, evaluation.gated)
    moved = {}
    with evaluation.progress.task("what each layer costs", len(names)) as advance:
        for name in names:
            path = evaluation.scratch / "alone.onnx"
            alone = replace(quantization, keep=tuple(other for other in layers if other != name))
            _write_dequantized(evaluation, alone, path)
            with closing(evaluation.open(path, evaluation.gated, int8.fp32)) as engine:
                outputs = batches.run(engine, inputs, evaluation.gated)
            moved[name] = sum(float(np.square(outputs[key] - expected[key]).sum()) for key in expected)
            advance()
    return sorted(moved, key=lambda name: -moved[name])[:count]


def _write_dequantized(evaluation: Evaluation, quantization: Quantization, path: Path) -> None:
    int8 = evaluation.scratch / "alone-int8.onnx"
    lowering.transform(
        evaluation.pair.onnx("sparse"),
        int8,
        passes=("fold_batchnorm",),
        batch_size=evaluation.gated,
        quantization=quantization,
    )
    quantize.dequantized.write(int8, path)
