"""Where integers pay, in DeepSparse: how many products a conversion has to be worth, and weights of 7 bits against 8.

    python -m benchmarks.thresholds mobilenet_v1 mobilenet_v2 efficientnet_b0 resnet50 densenet121

The sparse half of each, nine of ten weights zero, at batch 1, all arms in turns: in float; in integers with weights of
8 bits, all layers; with as many bits as the processor takes, all layers; and with those layers in float that have fewer
than 4, 8 and 12 products for each value converted (`acdc_export.graph.quantize.worthwhile`; 8 is what is shipped).
torchvision's networks need requirements-vision.txt.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest import mock

from acdc_export import machine
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.graph.quantize import worthwhile
from acdc_export.pair import Pair
from acdc_export.progress import Terminal
from acdc_export.trial import setup

from . import arms, families

PLAN = Plan(budget=3600.0, most=6, launch=4.0)
SHIPPED = "8 products"
THRESHOLDS = {"all layers": 0.0, "4 products": 4.0, SHIPPED: 8.0, "12 products": 12.0}


def main(names: list[str]) -> None:
    print("| network | p50 as shipped, ms | float | all, 8 bits | all | 4 | 12 |\n|---|---:|---:|---:|---:|---:|---:|")
    for name in names:
        print(f"| {name} | {' | '.join(measure(families.pair(name)))} |", flush=True)


def measure(pair: Pair) -> list[str]:
    """The shipped form's median, and how many times as long each other one takes."""
    opens: dict[str, latency.Open] = {}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        integers = arms.integers(pair, where, families.CALIBRATED)

        def lower(title: str, name: str = "cpu-int8") -> None:
            below = where / title.replace(" ", "-")
            below.mkdir()
            opens[title] = arms.lower(pair, "sparse", name, integers, below)

        for title, products in sorted(THRESHOLDS.items(), key=lambda item: item[0] != SHIPPED):
            with mock.patch.object(worthwhile, "PRODUCTS", products):
                lower(title)
        with mock.patch.object(worthwhile, "PRODUCTS", 0.0), mock.patch.object(setup, "saturates", return_value=False):
            lower("8 bits")
        lower("float", "cpu")
        inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
        cpus = machine.describe().cpus
        with Terminal().task(pair.path.name, PLAN.most) as advance:
            found = latency.measure(
                opens, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            ).seen()
    others = ("float", "8 bits", "all layers", "4 products", "12 products")
    ratios = [found.ratios[arm] for arm in others]
    return [f"{found.arms[SHIPPED].p50:.1f}", *(f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in ratios)]


if __name__ == "__main__":
    main(sys.argv[1:])
