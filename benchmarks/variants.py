"""A half of a pair in a deployment, as a variant of a measurement: `cpu`, `cpu-int8`, `onnxruntime-int8` and so on."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acdc_export import config, engines, machine
from acdc_export.config import Quantizer
from acdc_export.data import Data
from acdc_export.evaluation import quantizing
from acdc_export.evaluation.setup import Evaluation, Int8
from acdc_export.evidence import latency
from acdc_export.lowering import Deployment
from acdc_export.pair import Half, Pair
from acdc_export.progress import SILENT

CALIBRATED = 64  # samples


def samples(pair: Pair, count: int = CALIBRATED) -> list[tuple[dict[str, Any], Any]]:
    """Return one batch of random samples like those in a pair. For calibrating speed that is enough."""
    random = np.random.default_rng(0)
    arrays = {}
    for spec in pair.record.inputs:
        shape = spec.at(count)
        known = pair.reference.inputs[spec.name]
        arrays[spec.name] = (
            random.standard_normal(shape, dtype=np.float32)
            if known.dtype.kind == "f"
            else random.choice(known.reshape(-1), shape)
        )
    return [(arrays, np.zeros(count, dtype=np.int64))]


def calibrated(pair: Pair, folder: Path, count: int = CALIBRATED) -> Int8:
    """Calibrate a pair on such samples."""
    data = Data.of(samples(pair, count))
    return quantizing.calibrate(
        pair,
        data,
        [deployment("cpu-int8")],
        fp32=deployment("onnxruntime"),
        folder=folder,
        machine=machine.describe(),
        progress=SILENT,
    )


def deployment(name: str, quantizer: Quantizer | None = None) -> Deployment:
    """Return a deployment by its name, `TARGET` or `TARGET-PRECISION`, with the `quantizer` if one is given."""
    target, _, precision = name.partition("-")
    definition = config.load_target(target)
    if quantizer:
        settings = replace(definition.precisions[precision], quantizer=quantizer, quantizer_without_vnni=None)
        definition = replace(definition, precisions={**definition.precisions, precision: settings})
    return Deployment(engines.InstalledTarget(definition, engines.ensure(definition)), precision or "fp32")


def evaluation_of(
    pair: Pair, name: str, int8: Int8 | None, folder: Path, quantizer: Quantizer | None = None
) -> Evaluation:
    """Return an evaluation at batch 1, without gates."""
    return Evaluation(
        pair=pair,
        deployment=deployment(name, quantizer),
        controls=(),
        asked_controls=(),
        machine=machine.describe(),
        batch_sizes=(1,),
        gated=1,
        judged=pair.record.judged,
        folder=folder,
        scratch=folder,
        progress=SILENT,
        gates=(),
        int8=int8 if name.endswith("int8") else None,
    )


def lower(
    pair: Pair,
    half: Half,
    name: str,
    int8: Int8 | None,
    folder: Path,
    quantizer: Quantizer | None = None,
) -> latency.Open:
    """Lower a half for a deployment, run it once, and return a function that opens it.

    Raises:
        GraphError: the half can't be lowered.
        EngineError: the runtime doesn't take it.
    """
    evaluation = evaluation_of(pair, name, int8, folder, quantizer)
    path = evaluation.lower(half, folder / f"{half}-{name}")[1].path
    open_it = partial(evaluation.open, path, 1)
    with closing(open_it()) as engine:
        engine.run(evaluation.inputs(1))
    return open_it
