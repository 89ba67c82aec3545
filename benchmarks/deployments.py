"""Networks in every deployment, side by side in one run: how much do sparsity and INT8 gain over dense alternatives?

    python -m benchmarks.deployments resnet50 mobilenet_v1    measured anew, and the tables
    python -m benchmarks.deployments bert_base                in an environment of requirements-frameworks.txt
    python -m benchmarks.deployments                          the tables of what is there
    python -m benchmarks.deployments --export                 the seconds and memory of exporting ResNet-50 in INT8

Weights are random, and pruned by magnitude: latency is the same as with trained ones. All variants take turns at batch
1: each pattern's sparse half in DeepSparse in FP32 and INT8, and the dense network there and in the controls, in each
of their precisions. Speed is a ratio to the dense network in ONNX Runtime in FP32, and to the fastest dense variant.

Pairs stay in runs/deployments; results/deployments.json gets a network when its measurement ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acdc_export import Blocks, Unstructured, machine, models
from acdc_export.errors import AcdcExportError
from acdc_export.evaluation.static import examine
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.pair import Pair
from acdc_export.present.progress import TerminalProgress

from . import families, variants
from .networks import resnet50

PAIRS = Path("runs") / "deployments"
RESULTS = Path(__file__).parent / "results" / "deployments.json"
PLAN = Plan(budget=3600.0, most=10, launch=6.0)
DENSE = ("cpu", "cpu-int8", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-default", "openvino-int8")
SPARSE = ("cpu", "cpu-int8")
REFERENCE = "dense, onnxruntime"

Pattern = Unstructured | Blocks


def _uniform(sparsity: float) -> Unstructured:
    return Unstructured(sparsity, "uniform")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, torch.Tensor]], dict[str, Pattern]]] = {
    "resnet50": (
        resnet50,
        partial(families._images, 224),
        {"90 %": _uniform(0.9), "95 %": _uniform(0.95), "90 % in 1x4 blocks": Blocks(0.9, "uniform")},
    ),
    "mobilenet_v1": (
        partial(models.build, "mobilenet_v1", {}),
        partial(families._images, 224),
        {"75 %": _uniform(0.75), "90 %": _uniform(0.9)},
    ),
    "bert_base": (families._bert, families._sentences, {"90 %": _uniform(0.9)}),
}
"""By name: a function that makes the network, one that makes its inputs, and its patterns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []])
    parser.add_argument("--export", action="store_true", help="time the export of ResNet-50 instead")
    options = parser.parse_args()
    if options.export:
        print_export()
        return
    for name in options.networks:
        results = measure(name)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**_read(), name: results}, indent=2) + "\n")
    for name, results in _read().items():
        _print(name, results)


def measure(name: str) -> dict[str, Any]:
    """Measure all variants of a network in turns."""
    progress, skipped = TerminalProgress(), {}
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at, (title, pair) in enumerate(pairs(name).items()):
            where = Path(folder) / str(at)
            where.mkdir()
            int8 = variants.calibrated(pair, where)
            halves = [("sparse", name) for name in SPARSE] + [("dense", name) for name in (DENSE if at == 0 else ())]
            for half, deployment in halves:
                variant = f"{title}, {deployment}" if half == "sparse" else f"dense, {deployment}"
                try:
                    opens[variant] = variants.lower(pair, half, deployment, int8, where)  # type: ignore[arg-type]
                    progress.say(f"{name}: {variant} is ready.")
                except AcdcExportError as error:
                    skipped[variant] = error.message
        first = {REFERENCE: opens.pop(REFERENCE)}
        cpus = machine.describe().cpus
        inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
        with progress.task(name, PLAN.most) as advance:
            taken = latency.measure(
                {**first, **opens}, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            )
    found = taken.latency()
    dense = [variant for variant in taken.variants if variant.startswith("dense, ")]
    fastest = min(dense, key=lambda variant: found.variants[variant].p50)
    beside = taken.latency(
        {variant: variant for variant in (fastest, *(variant for variant in taken.variants if variant != fastest))}
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": machine.describe().processor,
        "cores": len(cpus),
        "launches": found.launches,
        "rounds": found.rounds,
        "notes": latency.notes(found),
        "skipped": skipped,
        "fastest dense": fastest,
        "p50": {variant: found.variants[variant].p50 for variant in taken.variants},
        "memory": {variant: found.variants[variant].memory for variant in taken.variants},
        "faster than the reference": {variant: _ends(ratio.inverse()) for variant, ratio in found.ratios.items()},
        "faster than the fastest dense": {variant: _ends(ratio.inverse()) for variant, ratio in beside.ratios.items()},
    }


def _ends(ratio: Any) -> list[float]:
    return [ratio.value, ratio.low, ratio.high]


def pairs(name: str) -> dict[str, Pair]:
    """Return a pair for each pattern, of the same dense weights. Pairs are made once and then reused."""
    make, take, patterns = NETWORKS[name]
    loaded = {}
    for title, pattern in patterns.items():
        path = PAIRS / f"{name}-{title.replace(' %', '').replace(' ', '-')}"
        if not path.exists():
            torch.manual_seed(0)
            model = make()
            torch.manual_seed(1)
            families.pair_of(model, take(), path, pattern)
        loaded[title] = Pair.load(path)
    return loaded


# ---------------------------------------------------------------------------------------------------------- the export


def print_export() -> None:
    """Print the seconds and memory of exporting a ResNet-50 in INT8: calibration, lowering, structure, parity."""
    pair = next(iter(pairs("resnet50").values()))
    with tempfile.TemporaryDirectory() as folder, _peak() as peak:
        where = Path(folder)
        for name in ("model", "evidence"):
            (where / name).mkdir()
        start = time.monotonic()
        int8 = variants.calibrated(pair, where)
        calibrated = time.monotonic() - start
        examine(variants.evaluation_of(pair, "cpu-int8", int8, where), 0.05)
        seconds = time.monotonic() - start
    print(
        f"{seconds:.0f} s, {calibrated:.0f} s of them calibration on {variants.CALIBRATED} images; "
        f"{peak[0] / 1e9:.2f} GB"
    )


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Watch the most memory that this process and its children hold together, twenty times a second, in bytes."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], _held())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    yield peak
    over.set()
    watcher.join()


def _held() -> int:
    """Return the resident bytes of this process and all below it. Shared pages count in each of them."""
    parents, resident = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)], resident[int(folder.name)] = int(stat[1]), int(stat[21]) * 4096
    own = {int(Path("/proc/self").resolve().name)}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(resident.get(pid, 0) for pid in own)


# ----------------------------------------------------------------------------------------------------------- the tables


def _read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _print(name: str, results: dict[str, Any]) -> None:
    print(f"\n{name}, batch 1, {results['cores']} threads, {results['launches']} launches, {results['rounds']} rounds")
    print(f"| | p50, ms | times as fast as {REFERENCE} | and as {results['fastest dense']} | peak memory |")
    print("|---|---:|---:|---:|---:|")
    for variant, p50 in sorted(results["p50"].items(), key=lambda item: -item[1]):
        beside = [
            "1" if variant not in results[key] else "{:.2f} [{:.2f}, {:.2f}]".format(*results[key][variant])
            for key in ("faster than the reference", "faster than the fastest dense")
        ]
        print(f"| {variant} | {p50:.1f} | {' | '.join(beside)} | {results['memory'][variant] / 1e6:.0f} MB |")
    for variant, reason in results["skipped"].items():
        print(f"{variant}: {reason}")
    for note in results["notes"]:
        print(note)


if __name__ == "__main__":
    main()
