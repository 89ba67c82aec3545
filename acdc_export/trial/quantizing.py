"""What int8 adds to a trial: calibration before it, exact arithmetic to hold it against, and what the integers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import graph
from ..data import Data
from ..errors import CalibrationError, UsageError, nearest
from ..evidence import batches
from ..evidence.engine import Engine
from ..graph import quantize
from ..pair import HALVES, Half, named
from .setup import Integers, Trial

SAMPLES = 128
"""That are calibrated with."""

_ROWS = 8  # at a time: all activations of so many are in memory at once
_FAR = 4.0  # times as wide, or away from the mean, as the pair's own inputs: not prepared as those were


def prepare(trial: Trial) -> dict[Half, graph.Quantization]:
    """Calibrate both halves, each by itself, on the same samples. In fp32 there is nothing to do.

    Raises:
        CalibrationError: samples that are none, or unlike the pair's inputs.
        UsageError: a layer to keep in float that isn't there.
    """
    integers, scheme = trial.integers, trial.seat.target.graph.int8
    if integers is None or scheme is None:
        return {}
    inputs = _samples(trial, integers.samples)
    found: dict[Half, graph.Quantization] = {}
    with trial.progress.task("calibration", len(HALVES)) as advance:
        for half in HALVES:
            prepared, instrumented = (trial.scratch / f"{half}-{what}.onnx" for what in ("prepared", "instrumented"))
            quantize.prepare(trial.pair.onnx(half), prepared)
            _check_names(integers.keep, quantize.layer_names(prepared))
            watched = quantize.instrument(prepared, instrumented)
            with closing(trial.open(instrumented, _ROWS, integers.floats)) as engine:
                calibration = quantize.calibrate(engine.run, inputs, watched)
            found[half] = graph.Quantization(prepared, calibration, scheme, integers.keep)
            advance()
    return found


def _samples(trial: Trial, data: Data) -> list[dict[str, NDArray[Any]]]:
    """Batches of the calibration samples."""
    found = [
        {name: batches.pad(array, _ROWS) for name, array in inputs.items()}
        for inputs, _ in named(data.sample(SAMPLES), trial.pair.record.inputs, _ROWS)
    ]
    for spec in trial.pair.record.inputs:
        given = np.concatenate([batch[spec.name] for batch in found])
        if given.dtype.kind == "f":
            _check_like(spec.name, given, trial.pair.reference.inputs[spec.name])
    return found


def _check_like(name: str, given: NDArray[Any], known: NDArray[Any]) -> None:
    """Raises `CalibrationError` for samples that were scaled otherwise than the pair's own inputs."""
    spread, wanted = float(given.std()), float(known.std())
    away = abs(float(given.mean()) - float(known.mean()))
    if not np.isfinite(spread) or spread > _FAR * wanted or wanted > _FAR * spread or away > _FAR * wanted:
        raise CalibrationError(
            f"The calibration samples have {name} from {given.min():.3g} to {given.max():.3g}, with a standard "
            f"deviation of {spread:.3g}; the pair's inputs run from {known.min():.3g} to {known.max():.3g}, with "
            f"{wanted:.3g}.",
            "Prepare them as for training: is the normalisation missing?",
        )


def _check_names(keep: Sequence[str], known: Sequence[str]) -> None:
    for name in keep:
        if name not in known:
            raise UsageError(
                f"--keep-fp32 {name}: there is no such layer{nearest(name, list(known))}.",
                f"These can be kept: {', '.join(known)}.",
            )


def exact(
    trial: Trial, models: Mapping[tuple[Half, int], graph.Lowered]
) -> dict[tuple[Half, int], dict[str, NDArray[Any]]]:
    """What the quantized graphs give for the pair's reference inputs in exact arithmetic, by half and batch size."""
    found: dict[tuple[Half, int], dict[str, NDArray[Any]]] = {}
    if trial.integers is None:
        return found
    for (half, size), lowered in models.items():
        path = trial.scratch / f"exact-{half}-{size}.onnx"
        quantize.exact.write(lowered.path, path)
        with closing(trial.open(path, size, trial.integers.floats)) as engine:
            found[half, size] = batches.run(engine, trial.pair.reference.inputs, size)
    return found


def floating(trial: Trial, integers: Integers, half: Half) -> Engine:
    """A half as it was before it was quantized, in float32."""
    return trial.open(trial.scratch / f"{half}-prepared.onnx", trial.gated, integers.floats)


def costliest(trial: Trial, integers: Integers, quantization: graph.Quantization, count: int = 3) -> list[str]:
    """The layers whose integers move the sparse half's outputs most, when they alone are quantized."""
    inputs = trial.pair.reference.inputs
    names = [name for name in quantize.layer_names(quantization.prepared) if name not in quantization.keep]
    with closing(floating(trial, integers, "sparse")) as engine:
        wanted = batches.run(engine, inputs, trial.gated)
    moved = {}
    with trial.progress.task("what each layer costs", len(names)) as advance:
        for name in names:
            path = trial.scratch / "alone.onnx"
            alone = replace(quantization, keep=tuple(other for other in names if other != name))
            _write_exact(trial, alone, path)
            with closing(trial.open(path, trial.gated, integers.floats)) as engine:
                found = batches.run(engine, inputs, trial.gated)
            moved[name] = sum(float(np.square(found[key] - wanted[key]).sum()) for key in wanted)
            advance()
    return sorted(moved, key=lambda name: -moved[name])[:count]


def _write_exact(trial: Trial, quantization: graph.Quantization, path: Path) -> None:
    lowered = trial.scratch / "alone-integers.onnx"
    source, passes = trial.pair.onnx("sparse"), ("fold_batchnorm",)
    graph.lower(source, lowered, passes=passes, batch_size=trial.gated, quantization=quantization)
    quantize.exact.write(lowered, path)
