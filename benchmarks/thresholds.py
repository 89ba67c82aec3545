"""Where is INT8 faster, in DeepSparse? How many MACs a conversion has to be worth, and weights of 7 bits against 8.

    python -m benchmarks.thresholds mobilenet_v1 mobilenet_v2 efficientnet_b0 resnet50 densenet121

The sparse half of each network has nine of ten weights zero. All variants take turns at batch 1: FP32; INT8 in all
layers with weights of 8 bits; INT8 in all layers with as many bits as the processor takes; and INT8 with those layers
in FP32 that have fewer than 4, 8, 12, 16 and 24 MACs for each value converted
(`acdc_export.lowering.quantize.worthwhile`; 12 with VNNI and 8 without it are shipped). torchvision's networks need
requirements-vision.txt.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from acdc_export import machine
from acdc_export.config import Quantizer
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.pair import Pair
from acdc_export.present.progress import TerminalProgress

from . import families, variants

PLAN = Plan(budget=3600.0, most=6, launch=4.0)
THRESHOLDS = (4, 8, 12, 16, 24)
QUANTIZER = variants.deployment("cpu-int8").quantizer
SHIPPED = int(QUANTIZER.least_macs)
OTHERS = (
    "FP32",
    "all layers, 8 bits",
    "all layers",
    *(f"{least} MACs" for least in THRESHOLDS if least != SHIPPED),
)


def main(names: list[str]) -> None:
    print(f"| network | {SHIPPED} MACs | {' | '.join(OTHERS)} |\n|---|{'---:|' * (1 + len(OTHERS))}")
    for name in names:
        print(f"| {name} | {' | '.join(measure(families.pair(name)))} |", flush=True)


def measure(pair: Pair) -> list[str]:
    """Return the shipped form's median, and how many times as long each other form takes."""
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        int8 = variants.calibrated(pair, where, families.CALIBRATED)

        def lower(title: str, name: str = "cpu-int8", quantizer: Quantizer | None = None) -> None:
            below = where / title.replace(" ", "-")
            below.mkdir()
            opens[title] = variants.lower(pair, "sparse", name, int8, below, quantizer)

        for least in sorted(THRESHOLDS, key=lambda least: least != SHIPPED):  # the shipped threshold comes first
            lower(f"{least} MACs", quantizer=replace(QUANTIZER, least_macs=least))
        lower("all layers", quantizer=replace(QUANTIZER, least_macs=0.0))
        lower("all layers, 8 bits", quantizer=Quantizer(weight_bits=8))
        lower("FP32", "cpu")
        inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
        cpus = machine.describe().cpus
        with TerminalProgress().task(pair.path.name, PLAN.most) as advance:
            compared = latency.measure(
                opens, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            ).latency()
    ratios = [compared.ratios[variant] for variant in OTHERS]
    return [
        f"{compared.variants[f'{SHIPPED} MACs'].p50:.1f} ms",
        *(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in ratios),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
