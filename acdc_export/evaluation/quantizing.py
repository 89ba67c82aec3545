"""What int8 adds to a evaluation: calibration before it, exact arithmetic to hold it against, and what the integers cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import lowering
from ..data import Data
from ..errors import CalibrationError, UsageError, nearest
from ..evidence import batches
from ..evidence.engine import Engine
from ..lowering import quantize
from ..machine import Machine
from ..pair import HALVES, Half, Pair, named
from ..progress import Progress
from .lowering import RUNTIME, Deployed
from .setup import Deployment, Evaluation, Integers

SAMPLES = 128
"""That are calibrated with."""

_ROWS = 8  # at a time: all activations of so many are in memory at once
_FAR = 4.0  # times as wide, or away from the mean, as the pair's own inputs: not prepared as those were


def prepare(
    pair: Pair,
    data: Data,
    floats: Deployment,
    folder: Path,
    machine: Machine,
    progress: Progress,
    *,
    schemes: Sequence[str],
    keep: tuple[str, ...] = (),
) -> Integers:
    """Calibrate both halves, each by itself, on the same samples; files of it go into `folder`.

    Args:
        schemes: of the deployments that are to come. Runtimes that quantize by themselves only need the samples.

    Raises:
        CalibrationError: samples that are none, or unlike the pair's inputs.
        UsageError: a layer to keep in float that isn't there.
    """
    samples = _samples(pair, data)
    found: dict[Half, lowering.Calibrated] = {}
    if all(scheme == RUNTIME for scheme in schemes):
        _check_kept(keep, [])
        return Integers(samples, floats, found)
    with progress.task("calibration", len(HALVES)) as advance:
        for half in HALVES:
            prepared, instrumented = (folder / f"{half}-{what}.onnx" for what in ("prepared", "instrumented"))
            quantize.fold(pair.onnx(half), prepared)
            _check_kept(keep, quantize.layer_names(prepared))
            watched = quantize.instrument(prepared, instrumented)
            with closing(floats.installed.open(instrumented, batch_size=_ROWS, cpus=machine.cpus)) as engine:
                found[half] = lowering.Calibrated(prepared, quantize.calibrate(engine.run, _batches(samples), watched))
            advance()
    return Integers(samples, floats, found, keep)


def _samples(pair: Pair, data: Data) -> dict[str, NDArray[Any]]:
    """The calibration samples, by input."""
    read = [inputs for inputs, _ in named(data.sample(SAMPLES), pair.record.inputs, _ROWS)]
    if not read:
        raise CalibrationError("There are no samples to calibrate with.", "Give some of the training split.")
    found = {spec.name: np.concatenate([inputs[spec.name] for inputs in read]) for spec in pair.record.inputs}
    for name, given in found.items():
        if given.dtype.kind == "f":
            _check_like(name, given, pair.reference.inputs[name])
    return found


def _batches(samples: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    count = len(next(iter(samples.values())))
    return [
        {name: batches.pad(array[at : at + _ROWS], _ROWS) for name, array in samples.items()}
        for at in range(0, count, _ROWS)
    ]


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


def _check_kept(keep: Sequence[str], known: Sequence[str]) -> None:
    for name in keep:
        if name not in known:
            raise UsageError(
                f"--keep-fp32 {name}: there is no such layer{nearest(name, list(known))}.",
                f"These can be kept: {', '.join(known)}."
                if known
                else "Runtimes that quantize by themselves keep none.",
            )


def exact(
    evaluation: Evaluation, models: dict[tuple[Half, int], Deployed]
) -> dict[tuple[Half, int], dict[str, NDArray[Any]]]:
    """What our own quantized graphs give for the pair's reference inputs in exact arithmetic."""
    found: dict[tuple[Half, int], dict[str, NDArray[Any]]] = {}
    if evaluation.integers is None or evaluation.deployment.scheme in (None, RUNTIME):
        return found
    for (half, size), model in models.items():
        path = evaluation.scratch / f"exact-{half}-{size}.onnx"
        quantize.dequantized.write(model.path, path)
        rows = model.part or size
        with closing(evaluation.open(path, rows, evaluation.integers.floats)) as engine:
            found[half, size] = batches.run(engine, evaluation.pair.reference.inputs, rows)
    return found


def floating(evaluation: Evaluation, integers: Integers, half: Half) -> Engine:
    """A half as it was before it was quantized, in float32."""
    return evaluation.open(evaluation.pair.onnx(half), evaluation.gated, integers.floats)


def costliest(evaluation: Evaluation, integers: Integers, count: int = 3) -> list[str]:
    """The layers whose integers move the sparse half's outputs most, when they alone are quantized by our scheme."""
    assert evaluation.deployment.scheme is not None
    quantization = integers.quantization("sparse", evaluation.deployment.scheme)
    inputs = evaluation.pair.reference.inputs
    known = quantize.layer_names(integers.halves["sparse"].folded)
    names = [name for name in known if name not in quantization.keep]
    with closing(floating(evaluation, integers, "sparse")) as engine:
        wanted = batches.run(engine, inputs, evaluation.gated)
    moved = {}
    with evaluation.progress.task("what each layer costs", len(names)) as advance:
        for name in names:
            path = evaluation.scratch / "alone.onnx"
            alone = replace(quantization, keep=tuple(other for other in known if other != name))
            _write_exact(evaluation, alone, path)
            with closing(evaluation.open(path, evaluation.gated, integers.floats)) as engine:
                found = batches.run(engine, inputs, evaluation.gated)
            moved[name] = sum(float(np.square(found[key] - wanted[key]).sum()) for key in wanted)
            advance()
    return sorted(moved, key=lambda name: -moved[name])[:count]


def _write_exact(evaluation: Evaluation, quantization: lowering.Quantization, path: Path) -> None:
    lowered = evaluation.scratch / "alone-integers.onnx"
    source, passes = evaluation.pair.onnx("sparse"), ("fold_batchnorm",)
    lowering.lower(source, lowered, passes=passes, batch_size=evaluation.gated, quantization=quantization)
    quantize.dequantized.write(lowered, path)
