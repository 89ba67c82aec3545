"""How long should a turn be? The same model is both variants, so the launches' ratios should all be 1.

Turn lengths take turns themselves, launch by launch. The table says how far the launches of each length spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from acdc_export.checking import open_bundle
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.options import BundleOptions

from . import trust

TURNS = (0.001, 0.015, 0.05)  # seconds, at least
LAUNCHES = 20


def main() -> dict[str, Any]:
    loaded = open_bundle(trust.the_bundle(trust.BATCH).path, None, BundleOptions())
    cpus = loaded.cpus
    variants = {"a": loaded.open, "b": loaded.open}
    logs: dict[float, list[float]] = {turn: [] for turn in TURNS}
    p50 = []
    for _ in range(LAUNCHES):
        for turn in TURNS:
            plan = Plan(most=1, block=turn)
            taken = latency.measure(variants, loaded.inputs(), batch_size=trust.BATCH, plan=plan, cpus=cpus)
            found = taken.latency()
            logs[turn].append(float(np.log(found.ratios["b"].value)))
            p50.append(found.variants["a"].p50)
    print(f"a run takes {np.median(p50):.1f} ms; {LAUNCHES} launches of each, a second of alternation")
    for turn, values in logs.items():
        print(f"  turns of {1e3 * turn:3.0f} ms: the launches' ratios spread by {100 * np.std(values, ddof=1):.2f} %")
    return {"p50": float(np.median(p50)), "ratios": {str(turn): list(np.exp(values)) for turn, values in logs.items()}}
