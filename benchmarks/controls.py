"""How the controls' own INT8 changes a network's logits, by how it is built: the last table of quantization.md.

    python -m benchmarks.controls runs/digits digits

For both halves of a pair it prints the root mean square difference of the logits from FP32, the accuracy on the test
split of a built-in data set, and how many of the INT8 weights are zero. Calibration takes 128 samples of the training
split. Each way is a copy of the target with another line in its engine.py, so the benchmark measures what is shipped.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acdc_export import data, lowering, resources
from acdc_export.config import load_target
from acdc_export.engines import InstalledTarget, ensure
from acdc_export.pair import HALVES, Pair

SAMPLES, BATCH = 128, 32
WAYS: dict[str, dict[str, dict[str, str]]] = {
    "onnxruntime": {
        "as it is": {},
        "entropy": {"CalibrationMethod.MinMax": "CalibrationMethod.Entropy"},
        "percentile": {"CalibrationMethod.MinMax": "CalibrationMethod.Percentile"},
        "a scale a weight": {"per_channel=True": "per_channel=False"},
        "weights of 8 bits": {"reduce_range=saturates()": "reduce_range=False"},
    },
    "openvino": {
        "as it is": {},
        "NNCF's defaults": {
            "        advanced_parameters=advanced,\n": "",
            "openvino.Core().read_model(model)": "openvino.convert_model(model)",  # it knows biases in this form only
        },
        "bias correction": {
            "disable_bias_correction=True": "disable_bias_correction=False",
            "openvino.Core().read_model(model)": "openvino.convert_model(model)",
        },
        "weights of 7 bits": {"ENABLE if saturates() and multiplies_matrices(source) else None": "ENABLE"},
    },
}


@dataclass(frozen=True)
class Samples:
    """Samples of a built-in data set, in whole batches."""

    name: str  # the name of the network's input
    training: NDArray[Any]
    test: NDArray[Any]
    labels: NDArray[Any]


def main(pair: Pair, name: str) -> None:
    samples = _read(pair.record.inputs[0].name, name)
    with tempfile.TemporaryDirectory() as scratch:
        for target, ways in WAYS.items():
            for half in HALVES:
                folder = Path(scratch) / target / half
                folder.mkdir(parents=True)
                _compare(pair.onnx(half), f"{half}, {target}", target, ways, samples, folder)


def _compare(
    source: Path, title: str, target: str, ways: dict[str, dict[str, str]], samples: Samples, folder: Path
) -> None:
    model = folder / "fp32.onnx"
    lowering.transform(source, model, passes=load_target(target).graph.passes, batch_size=BATCH)
    expected = _run(_install(target, {}, folder / "fp32"), model, "fp32", samples)
    print(f"{title}: {_right(expected, samples):.2f} % right in FP32; root mean square difference, % right, zeros")
    for index, (way, changes) in enumerate(ways.items()):
        installed = _install(target, changes, folder / f"way{index}")
        built = installed.build(
            model,
            folder / f"int8-{index}",
            precision="int8",
            batch_sizes=[BATCH],
            cpus=_cores(),
            inputs={samples.name: samples.training},
        )
        logits = _run(installed, built.path, "int8", samples)
        zeros, total = np.sum(list((built.zeros or {}).values()), axis=0)
        off = np.sqrt(np.square(logits - expected).mean())
        print(f"  {way:<20}{off:10.4f}{_right(logits, samples):10.2f}{zeros:12,} of {total:,}", flush=True)


def _install(target: str, changes: dict[str, str], folder: Path) -> InstalledTarget:
    """Install a copy of a built-in target with other text in its engine."""
    resources.copy("targets", target, folder)
    engine = folder / "engine.py"
    text = engine.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{engine} has no {old!r} any more"
        text = text.replace(old, new)
    engine.write_text(text)
    definition = load_target(str(folder))
    return InstalledTarget(definition, ensure(definition))


def _read(name: str, source: str) -> Samples:
    training = np.concatenate([x for x, _ in data.load(f"{source}:train").sample(SAMPLES).batches(BATCH)])
    test = [(x, y) for x, y in data.load(f"{source}:test").batches(BATCH) if len(y) == BATCH]
    return Samples(name, training, np.concatenate([x for x, _ in test]), np.concatenate([y for _, y in test]))


def _run(installed: InstalledTarget, model: Path, precision: Any, samples: Samples) -> NDArray[Any]:
    with installed.open(model, batch_size=BATCH, cpus=_cores(), precision=precision) as engine:
        batches = samples.test.reshape(-1, BATCH, *samples.test.shape[1:])
        return np.concatenate([next(iter(engine.run({samples.name: batch}).values())) for batch in batches])


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _right(logits: NDArray[Any], samples: Samples) -> float:
    return 100 * float((logits.argmax(axis=1) == samples.labels).mean())


if __name__ == "__main__":
    main(Pair.load(sys.argv[1]), sys.argv[2])
