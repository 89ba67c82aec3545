"""Where does the time of a network go in DeepSparse? The engine's own profile of the sparse half and its dense twin.

    python -m benchmarks.layers mobilenet_v2 efficientnet_b0

FP32, batch 1. Nine of ten weights are zero in the sparse half. The halves are profiled in turns, each turn in a new
process. A layer's time is the median over turns. The names of the engine's layers tell their kinds apart:

- tiles: several layers, computed tile by tile (its name for them is pyramid);
- sparse, dense: convolutions and matrix products whose weights have zeros, or have none;
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
profile = model_debug_analysis(model, given, batch_size=1, num_cores=cores, num_iterations=30, num_warmup_iterations=10)
print()
print(json.dumps([[layer["name"], float(layer["average_run_time_in_ms"])] for layer in profile["layer_info"]]))
"""


def main(names: list[str]) -> None:
    print("milliseconds, and how many layers")
    print(f"| network | half | {' | '.join([*KINDS, REST])} | all |\n|---|---|{'---:|' * (len(KINDS) + 2)}")
    for name in names:
        for half, layers in measure(families.pair(name)).items():
            cells = []
            for kind in (*KINDS, REST):
                milliseconds = [taken for layer, taken in layers if kind_of(layer) == kind]
                cells.append(f"{sum(milliseconds):.2f} ({len(milliseconds)})" if milliseconds else "")
            print(f"| {name} | {half} | {' | '.join(cells)} | {sum(taken for _, taken in layers):.2f} |", flush=True)


def kind_of(layer: str) -> str:
    return next((kind for kind, prefix in KINDS.items() if re.match(prefix, layer)), REST)


def measure(pair: Pair) -> dict[Half, list[tuple[str, float]]]:
    """Return the layers of each half in order, with the milliseconds of each."""
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
