"""Where integers pay, in DeepSparse: how many products a conversion has to be worth, and weights of 7 bits against 8.

    python -m benchmarks.thresholds mobilenet_v1 mobilenet_v2 efficientnet_b0 resnet50 densenet121

The sparse half of each, nine of ten weights zero, at batch 1, all variants in turns: in float; in integers with weights of
8 bits, all layers; with as many bits as the processor takes, all layers; and with those layers in float that have fewer
than 4, 8, 12, 16 and 24 products for each value converted (`acdc_export.graph.quantize.worthwhile`; 12 with VNNI and 8
without it is what is shipped).
torchvision's networks need requirements-vision.txt.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest import mock

from acdc_export import machine
from acdc_export.evaluation import setup
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.lowering.quantize import worthwhile
from acdc_export.pair import Pair
from acdc_export.present.progress import TerminalProgress

from . import families, variants

PLAN = Plan(budget=3600.0, most=6, launch=4.0)
THRESHOLDS = (4, 8, 12, 16, 24)
SHIPPED = int(worthwhile.PRODUCTS if machine.saturates() else worthwhile.PRODUCTS_VNNI)
OTHERS = (
    "float",
    "all layers, 8 bits",
    "all layers",
    *(f"{least} products" for least in THRESHOLDS if least != SHIPPED),
)


def main(names: list[str]) -> None:
    print(f"| network | {SHIPPED} products | {' | '.join(OTHERS)} |\n|---|{'---:|' * (1 + len(OTHERS))}")
    for name in names:
        print(f"| {name} | {' | '.join(measure(families.pair(name)))} |", flush=True)


def measure(pair: Pair) -> list[str]:
    """The shipped form's median, and how many times as long each other one takes."""
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        integers = variants.integers(pair, where, families.CALIBRATED)

        def lower(title: str, name: str = "cpu-int8", least: float = 0.0) -> None:
            below = where / title.replace(" ", "-")
            below.mkdir()
            with mock.patch.multiple(worthwhile, PRODUCTS=least, PRODUCTS_VNNI=least):
                opens[title] = variants.lower(pair, "sparse", name, integers, below)

        for least in sorted(THRESHOLDS, key=lambda least: least != SHIPPED):  # what is shipped comes first
            lower(f"{least} products", least=least)
        lower("all layers")
        with mock.patch.object(setup, "saturates", return_value=False):
            lower("all layers, 8 bits")
        lower("float", "cpu")
        inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
        cpus = machine.describe().cpus
        with TerminalProgress().task(pair.path.name, PLAN.most) as advance:
            found = latency.measure(
                opens, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            ).seen()
    ratios = [found.ratios[variant] for variant in OTHERS]
    return [
        f"{found.variants[f'{SHIPPED} products'].p50:.1f} ms",
        *(f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in ratios),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
