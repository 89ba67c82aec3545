"""Single samples or many at once, on one core or on all: the sparse half in INT8 against dense variants.

    python -m benchmarks.throughput resnet50    measure it anew, and the table; or digits
    python -m benchmarks.throughput             the tables of what is there

Each network is one export in INT8, with the controls that a bundle has, as by `acdc-export --batch-size 1 --batch-size
8 --batch-size 32 --threads 1 --threads 2`. ResNet-50's weights are random, nine of ten of them zero, as in
benchmarks.deployments. digits is the pair of the pipeline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acdc_export import Pair, export, machine
from acdc_export.present.progress import TerminalProgress
from acdc_export.records import to_json

from . import deployments, pairs, variants

RESULTS = Path(__file__).parent / "results" / "throughput.json"
BATCH_SIZES = (1, 8, 32)
PAIRS: dict[str, tuple[Callable[[], Pair], float]] = {
    "digits": (pairs.digits, 60.0),
    "resnet50": (lambda: deployments.pairs("resnet50")["90 %"], 300.0),
}
"""By name: the pair, and the budget in seconds. The first combination takes all of it, each other one half."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*PAIRS, []])
    for name in parser.parse_args().networks:
        make, budget = PAIRS[name]
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**_read(), name: measure(make(), budget)}, indent=2) + "\n")
    for name, results in _read().items():
        _print(name, results)


def measure(pair: Pair, budget: float) -> dict[str, Any]:
    """Return what the report says on latency, memory and loading, for every batch size and number of threads."""
    with tempfile.TemporaryDirectory() as out:
        report = export(
            pair,
            "cpu",
            precision="int8",
            calibrate=None if pair.record.pipeline else variants.samples(pair),
            batch_sizes=BATCH_SIZES,
            threads={1, len(machine.describe().cpus)},
            gates=["speedup >= 1"],
            budget=budget,
            out=out,
            progress=TerminalProgress(),
        ).report
    content = to_json(report)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: content[key] for key in ("machine", "loading", "latency", "notes")},
    }


def _print(name: str, results: dict[str, Any]) -> None:
    print(f"\n{name}: seconds to load, by batch size: {results['loading']}")
    print("| batch | threads | variant | p50, ms | p90 | p99 | samples/s | peak MB | times the sparse |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for facts in sorted(results["latency"], key=lambda facts: (facts["batch_size"], facts["threads"])):
        for variant, of in facts["variants"].items():
            ratio = facts["ratios"].get(variant)
            ends = [float(ratio[key]) for key in ("value", "low", "high")] if ratio else []  # infinite ends are text
            cells = [
                *(f"{facts[key]}" for key in ("batch_size", "threads")),
                variant,
                *("" if of[key] is None else f"{of[key]:.2f}" for key in ("p50", "p90", "p99")),
                f"{1e3 * facts['batch_size'] / of['p50']:.0f}",
                f"{of['memory'] / 1e6:.0f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*ends) if ends else "",
            ]
            print(f"| {' | '.join(cells)} |")


def _read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


if __name__ == "__main__":
    main()
