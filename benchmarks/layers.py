"""Where the time of a network goes in DeepSparse, by the engine's own profile: the sparse half, and its dense twin.

    python -m benchmarks.layers mobilenet_v2 efficientnet_b0

Float32, batch 1. Nine of ten weights are zero in the sparse half. Both are profiled in turns, each in a new process,
and what a layer took is the median over those. The engine tells its layers apart by name:

- tiles: several layers, computed tile by tile (its name for them is pyramid);
- sparse, dense: products with weights that have zeros, and with such that have none;
- depthwise;
- reordered: passes that only change the order of an activation;
- the rest: pooling, and what another runtime inside it does.

torchvision's networks need requirements-vision.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from acdc_export.pair import Half, Pair

from . import families, variants

TURNS = 7
HALVES: tuple[Half, ...] = ("sparse", "dense")
KINDS = {
    "tiles": "pyramid_",
    "sparse": "ks_",
    "dense": "convolution_|gemm_|winograd_",
    "depthwise": "depthwise_",
    "reordered": "shuffle_",
}
REST = "the rest"

PROFILE = """
import json, sys
import numpy as np
from deepsparse import Engine, model_debug_analysis
model, cores = sys.argv[1], int(sys.argv[2])
random = np.random.default_rng(0)
given = [random.standard_normal(shape, dtype=np.float32) for shape in Engine(model, 1, cores).input_shapes]
found = model_debug_analysis(model, given, batch_size=1, num_cores=cores, num_iterations=30, num_warmup_iterations=10)
print()
print(json.dumps([[layer["name"], float(layer["average_run_time_in_ms"])] for layer in found["layer_info"]]))
"""


def main(names: list[str]) -> None:
    print("milliseconds, and how many layers")
    print(f"| network | half | {' | '.join([*KINDS, REST])} | all |\n|---|---|{'---:|' * (len(KINDS) + 2)}")
    for name in names:
        for half, layers in measure(families.pair(name)).items():
            workloads = []
            for kind in (*KINDS, REST):
                found = [taken for layer, taken in layers if kind_of(layer) == kind]
                workloads.append(f"{sum(found):.2f} ({len(found)})" if found else "")
            print(
                f"| {name} | {half} | {' | '.join(workloads)} | {sum(taken for _, taken in layers):.2f} |", flush=True
            )


def kind_of(layer: str) -> str:
    return next((kind for kind, prefix in KINDS.items() if re.match(prefix, layer)), REST)


def measure(pair: Pair) -> dict[Half, list[tuple[str, float]]]:
    """By half, its layers in order, with the milliseconds that each takes."""
    deployment = variants.deployment("cpu")
    python, environment = deployment.installed.environment.python, {**os.environ, **deployment.target.runtime.variables}
    taken: dict[Half, list[Any]] = {half: [] for half in HALVES}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        evaluation = variants.evaluation_of(pair, "cpu", None, where)
        models = {half: evaluation.lower(half, where / half)[1].path for half in HALVES}
        for turn in range(TURNS):
            for half in HALVES[:: 1 if turn % 2 else -1]:
                command = [str(python), "-c", PROFILE, str(models[half]), str(len(evaluation.machine.cpus))]
                said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                taken[half].append(json.loads(said.splitlines()[-1]))
    return {
        half: [(layers[0][0], float(np.median([took for _, took in layers]))) for layers in zip(*turns, strict=True)]
        for half, turns in taken.items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
