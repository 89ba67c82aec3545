"""A half of a pair in a deployment, as an variant of a measurement: `cpu`, `cpu-int8`, `onnxruntime-int8` and so on."""

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
    """A batch of samples like those in a pair, to calibrate it with: for speed that is enough."""
    random = np.random.default_rng(0)
    made = {}
    for spec in pair.record.inputs:
        shape = spec.at(count)
        known = pair.reference.inputs[spec.name]
        made[spec.name] = (
            random.standard_normal(shape, dtype=np.float32)
            if known.dtype.kind == "f"
            else random.choice(known.reshape(-1), shape)
        )
    return [(made, np.zeros(count, dtype=np.int64))]


def integers(pair: Pair, folder: Path, count: int = CALIBRATED) -> Integers:
    """A pair, calibrated on such samples."""
    data = Data.of(samples(pair, count))
    return evaluation.prepare(
        pair, data, deployment("onnxruntime"), folder, machine.describe(), SILENT, schemes=["convinteger"]
    )


def deployment(name: str) -> Deployment:
    """By its name, which is `TARGET` or `TARGET-PRECISION`."""
    target, _, precision = name.partition("-")
    definition = config.load_target(target)
    return Deployment(engines.InstalledTarget(definition, engines.ensure(definition)), precision or "fp32")


def trial_of(pair: Pair, name: str, integers: Integers | None, folder: Path) -> Evaluation:
    """At batch 1, with nothing judged."""
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
    """How to open a half in a deployment, once it has been found that it can be.

    Raises:
        GraphError: it can't be lowered.
        EngineError: the runtime doesn't take it.
    """
    made = trial_of(pair, name, integers, folder)
    path = lowering.lower(made, half, folder / f"{half}-{name}")[1].path
    open_it = partial(made.open, path, 1)
    with closing(open_it()) as engine:
        engine.run(made.inputs(1))
    return open_it
