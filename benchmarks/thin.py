"""Which layers of a thin network are worth pruning, in DeepSparse? Those of MobileNet and EfficientNet.

    python -m benchmarks.thin mobilenet_v1 mobilenet_v2 efficientnet_b0

Nine of ten weights are zero in each layer that is pruned. All variants take turns at batch 1. They prune all layers;
all but depthwise convolutions; or all but these and layers with fewer than 16, 60 and 150 thousand weights. The table
says how many times as fast as the dense network each is, in the same precision. torchvision's networks need
requirements-vision.txt.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from acdc_export import Unstructured, machine
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.present.progress import TerminalProgress

from . import families, variants

PLAN = Plan(budget=3600.0, most=6, launch=4.0)
BELOW = {"depthwise": 0, "below 16,000": 16_000, "below 60,000": 60_000, "below 150,000": 150_000}
DENSE = {"nothing": families.PATTERN} | {
    title: Unstructured(families.SPARSITY, "uniform", exclude_types=["depthwise"], exclude_below=below)
    for title, below in BELOW.items()
}
"""By the title of the layers that stay dense, the pattern of the rest."""


def main(names: list[str]) -> None:
    print(f"| network | precision | dense, p50 | {' | '.join(DENSE)} |")
    print(f"|---|---|---:|{'---:|' * len(DENSE)}")
    for name in names:
        for precision, cells in measure(name).items():
            print(f"| {name} | {precision} | {' | '.join(cells)} |", flush=True)


def measure(name: str) -> dict[str, list[str]]:
    """Return, by precision, the dense network's median and how many times as fast each sparse network is."""
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at, (title, pattern) in enumerate(DENSE.items()):
            where = Path(folder) / str(at)
            where.mkdir()
            _, make, take = families.FAMILIES[name]
            torch.manual_seed(0)
            pair = families.pair_of(make(), take(), where / "pair", pattern)
            int8 = variants.calibrated(pair, where, families.CALIBRATED)
            for deployment in ("cpu", "cpu-int8"):
                if not at:
                    opens[f"dense {deployment}"] = variants.lower(pair, "dense", deployment, int8, where)
                opens[f"{title} {deployment}"] = variants.lower(pair, "sparse", deployment, int8, where)
        inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
        cpus = machine.describe().cpus
        with TerminalProgress().task(name, PLAN.most) as advance:
            taken = latency.measure(
                opens, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            )
    rows = {}
    for precision, deployment in (("FP32", "cpu"), ("INT8", "cpu-int8")):
        seen = taken.latency({f"{variant} {deployment}": variant for variant in ("dense", *DENSE)})
        ratios = [seen.ratios[title].inverse() for title in DENSE]
        shown = [f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in ratios]
        rows[precision] = [f"{seen.variants['dense'].p50:.1f} ms", *shown]
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
