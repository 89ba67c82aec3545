"""Networks in every deployment, side by side in one run: what zeros and integers give, and what one would take instead.

    python -m benchmarks.deployments resnet50 mobilenet_v1    measured anew, and the tables
    python -m benchmarks.deployments bert_base                in an environment of requirements-frameworks.txt
    python -m benchmarks.deployments                          the tables of what is there
    python -m benchmarks.deployments --export                 what exporting ResNet-50 in int8 takes

Weights are random, and pruned by magnitude: latency is the same as of trained ones. All variants take turns at batch 1:
each pattern's sparse half in DeepSparse in float32 and int8, and the dense network there and in the controls, in each
of their precisions. Speed is held against the dense network in ONNX Runtime in float32, and against the fastest dense
one of all.

Pairs stay in runs/deployments; results/deployments.json gets a network when it is measured.
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

from acdc_export import Blocks, Unstructured, evaluation, machine, models
from acdc_export.errors import AcdcExportError
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
"""By name: what makes it, what it takes, and how it is pruned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []])
    parser.add_argument("--export", action="store_true", help="time the export of ResNet-50 instead")
    options = parser.parse_args()
    if options.export:
        print_export()
        return
    for name in options.networks:
        found = measure(name)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**_read(), name: found}, indent=2) + "\n")
    for name, found in _read().items():
        _print(name, found)


def measure(name: str) -> dict[str, Any]:
    """All variants of a network in turns."""
    progress, skipped = TerminalProgress(), {}
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at, (title, pair) in enumerate(pairs(name).items()):
            where = Path(folder) / str(at)
            where.mkdir()
            integers = variants.integers(pair, where)
            wanted = [("sparse", one) for one in SPARSE] + [("dense", one) for one in (DENSE if at == 0 else ())]
            for half, deployment in wanted:
                variant = f"{title}, {deployment}" if half == "sparse" else f"dense, {deployment}"
                try:
                    opens[variant] = variants.lower(pair, half, deployment, integers, where)  # type: ignore[arg-type]
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
    found = taken.seen()
    dense = [variant for variant in taken.variants if variant.startswith("dense, ")]
    fastest = min(dense, key=lambda variant: found.variants[variant].p50)
    beside = taken.seen(
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
    """A pair for each pattern, of the same dense weights, made once."""
    make, take, patterns = NETWORKS[name]
    found = {}
    for title, pattern in patterns.items():
        path = PAIRS / f"{name}-{title.replace(' %', '').replace(' ', '-')}"
        if not path.exists():
            torch.manual_seed(0)
            model = make()
            torch.manual_seed(1)
            families.pair_of(model, take(), path, pattern)
        found[title] = Pair.load(path)
    return found


# ---------------------------------------------------------------------------------------------------------- the export


def print_export() -> None:
    """What exporting a ResNet-50 in int8 takes: calibration, lowering, structure and parity of both halves."""
    pair = next(iter(pairs("resnet50").values()))
    with tempfile.TemporaryDirectory() as folder, _peak() as peak:
        where = Path(folder)
        for part in ("model", "evidence"):
            (where / part).mkdir()
        start = time.monotonic()
        integers = variants.integers(pair, where)
        calibrated = time.monotonic() - start
        evaluation.examine(variants.trial_of(pair, "cpu-int8", integers, where), 0.05)
        seconds = time.monotonic() - start
    print(
        f"{seconds:.0f} s, {calibrated:.0f} s of them calibration on {variants.CALIBRATED} images; {peak[0] / 1e9:.2f} GB"
    )


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most memory that this process and those that it starts hold together, looked at twenty times a second."""
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
    """Resident bytes of this process and all below it, what they share counted in each."""
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


def _print(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}, batch 1, {found['cores']} threads, {found['launches']} launches, {found['rounds']} rounds")
    print(f"| | p50, ms | times as fast as {REFERENCE} | and as {found['fastest dense']} | peak memory |")
    print("|---|---:|---:|---:|---:|")
    for variant, p50 in sorted(found["p50"].items(), key=lambda item: -item[1]):
        beside = [
            "1" if variant not in found[key] else "{:.2f} [{:.2f}, {:.2f}]".format(*found[key][variant])
            for key in ("faster than the reference", "faster than the fastest dense")
        ]
        print(f"| {variant} | {p50:.1f} | {' | '.join(beside)} | {found['memory'][variant] / 1e6:.0f} MB |")
    for variant, reason in found["skipped"].items():
        print(f"{variant}: {reason}")
    for note in found["notes"]:
        print(note)


if __name__ == "__main__":
    main()
