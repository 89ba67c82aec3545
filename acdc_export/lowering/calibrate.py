"""What quantization takes beside the graph: samples, and the ranges that activations have on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import UsageError, nearest
from ..evidence import batches
from . import quantize
from .deployment import Deployment
from .quantize import Calibrated, Quantization

_ROWS = 8  # at a time: all activations of so many samples are in memory at once


@dataclass(frozen=True)
class QuantizationInputs:
    """What it takes to quantize one ONNX file, by our schemes or by a runtime."""

    samples: Mapping[str, NDArray[Any]]  # of the training split, by input, (samples, ...)
    calibrated: Calibrated | None = None  # for our schemes; None where only runtimes quantize
    keep: tuple[str, ...] = ()  # layers that a user wants to stay in FP32, by their weights' names

    def quantization(self, deployment: Deployment) -> Quantization | None:
        """How the file is quantized for a deployment; None where we don't quantize it, but the runtime or nobody."""
        scheme, quantizer = deployment.settings.scheme, deployment.quantizer
        if scheme is None or self.calibrated is None:
            return None
        slower = quantize.faster_in_fp32(self.calibrated, quantizer.least_macs, self.keep)
        return Quantization(self.calibrated, scheme, (*self.keep, *slower), quantizer.weight_bits)


def calibrate(
    source: Path,
    samples: Mapping[str, NDArray[Any]],
    deployments: Iterable[Deployment],
    *,
    fp32: Deployment,
    stem: Path,
    cpus: Sequence[int],
    keep: tuple[str, ...] = (),
    batch_size: int | None = None,
) -> QuantizationInputs:
    """Ready the ONNX file `source` for all of the deployments that quantize it.

    Args:
        samples: of the training split, by input, (samples, ...).
        fp32: a runtime that gives every value of a graph in FP32.
        stem: the path of the files that calibration writes, up to their endings.
        keep: layers that stay in FP32, by their weights' names: calibration asks nothing of their activations.
        batch_size: the only one that the graph runs on; None where it runs on any.

    Raises:
        CalibrationError: samples that no ranges come of.
        UsageError: a layer to keep that isn't there.
        EngineError: the FP32 runtime refused the graph, died or hung.
    """
    schemes = {scheme for deployment in deployments if (scheme := deployment.settings.scheme) is not None}
    if not schemes:
        _check_kept(keep, [])
        return QuantizationInputs(samples)
    folded, instrumented = (stem.with_name(f"{stem.name}-{what}.onnx") for what in ("folded", "instrumented"))
    quantize.fold(source, folded)
    _check_kept(keep, quantize.layer_names(folded))
    watched = quantize.instrument(folded, instrumented, keep, sorted(schemes))
    rows = batch_size or _ROWS
    with closing(fp32.open(instrumented, rows, cpus)) as engine:
        calibration = quantize.calibrate(engine.run, _batches(samples, rows), watched)
    return QuantizationInputs(samples, Calibrated(folded, calibration), keep)


def _batches(samples: Mapping[str, NDArray[Any]], rows: int) -> list[dict[str, NDArray[Any]]]:
    count = len(next(iter(samples.values())))
    return [
        {name: batches.pad(array[start : start + rows], rows) for name, array in samples.items()}
        for start in range(0, count, rows)
    ]


def _check_kept(keep: Sequence[str], known: Sequence[str]) -> None:
    for name in keep:
        if name not in known:
            raise UsageError(
                f"--keep-fp32 {name}: there is no such layer{nearest(name, known)}.",
                f"These can be kept: {', '.join(known)}."
                if known
                else "Runtimes that quantize by themselves keep none.",
            )
