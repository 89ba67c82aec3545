"""A half of a pair in a deployment, as a variant of a measurement: `cpu`, `cpu-int8`, `onnxruntime-int8` and so on."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acdc_export import config, engines, evaluation, machine
from acdc_export.data import Data
from acdc_export.evaluation import Deployment, Evaluation, Integers, lowering
from acdc_export.evidence import latency
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


def integers(pair: Pair, folder: Path, count: int = CALIBRATED) -> Integers:
    """Calibrate a pair on such samples."""
    data = Data.of(samples(pair, count))
    return evaluation.prepare(
        pair, data, deployment("onnxruntime"), folder, machine.describe(), SILENT, schemes=["convinteger"]
    )


def deployment(name: str) -> Deployment:
    """Return a deployment by its name, which is `TARGET` or `TARGET-PRECISION`."""
    target, _, precision = name.partition("-")
    definition = config.load_target(target)
    return Deployment(engines.InstalledTarget(definition, engines.ensure(definition)), precision or "fp32")


def evaluation_of(pair: Pair, name: str, integers: Integers | None, folder: Path) -> Evaluation:
    """Return an evaluation at batch 1, without gates."""
    return Evaluation(
        pair=pair,
        deployment=deployment(name),
        controls=(),
        asked_controls=(),
        machine=machine.describe(),
        batch_sizes=(1,),
        gated=1,
        folder=folder,
        scratch=folder,
        progress=SILENT,
        gates=(),
        integers=integers if name.endswith("int8") else None,
    )


def lower(pair: Pair, half: Half, name: str, integers: Integers | None, folder: Path) -> latency.Open:
    """Lower a half for a deployment, run it once, and return a function that opens it.

    Raises:
        GraphError: the half can't be lowered.
        EngineError: the runtime doesn't take it.
    """
    prepared = evaluation_of(pair, name, integers, folder)
    path = lowering.lower(prepared, half, folder / f"{half}-{name}")[1].path
    open_it = partial(prepared.open, path, 1)
    with closing(open_it()) as engine:
        engine.run(prepared.inputs(1))
    return open_it
