"""How far the latency measurement can be trusted: the same model as all arms, so that the true ratio is 1.

Every trial launches its processes anew, as an export does. A 95 % interval should miss 1.0 in one trial of twenty.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acdc_export import engines, machine
from acdc_export.config import load_target
from acdc_export.evidence import batches, latency
from acdc_export.trial.steps import lower_half

from . import pairs

TRIALS = 12
BATCH = 16


def main() -> dict[str, Any]:
    pair, target, cpus = pairs.digits(), load_target("cpu"), machine.describe().cpus
    environment = engines.ensure(target)
    plan = latency.Plan(launches=target.benchmark.launches, seconds=target.benchmark.seconds)
    inputs = {name: batches.pad(array[:BATCH], BATCH) for name, array in pair.reference.inputs.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = lower_half(pair.onnx("sparse"), Path(folder) / "model", target, (BATCH,))[BATCH].path
        opened = partial(
            engines.open_engine, target, environment, model,
            batch_size=BATCH, threads=len(cpus), cpus=cpus, wait=False,
        )  # fmt: skip
        for _ in range(TRIALS):
            arms = {"a": opened, "b": opened, "c": opened}  # as many as in an export
            found = latency.measure(arms, inputs, batch_size=BATCH, plan=plan)[0].ratios["b"]
            rows.append([found.value, found.low, found.high])
            print(f"  b over a: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]", flush=True)
    ratios = np.array(rows)
    covered = int(((ratios[:, 1] <= 1) & (ratios[:, 2] >= 1)).sum())
    half = float(np.median((ratios[:, 2] - ratios[:, 1]) / 2))
    spread = float(np.exp(np.std(np.log(ratios[:, 0]))) - 1)
    print(f"{covered} of {TRIALS} intervals hold 1.0; median half-width {100 * half:.1f} %", end="; ")
    print(f"the ratios spread by {100 * spread:.1f} %")
    return {"batch_size": BATCH, "trials": rows, "covered": covered, "half_width": half, "spread": spread}
