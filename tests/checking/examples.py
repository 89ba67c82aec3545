"""Checks made up by hand."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.evidence.contention import Contention
from acdc_export.evidence.gates import Measurement, Status, Verdict
from acdc_export.evidence.latency import Latency, Variant
from acdc_export.evidence.steadiness import Steadiness
from acdc_export.machine import Machine
from acdc_export.records.check import BundleFacts, Check

BUNDLE_FACTS = BundleFacts(
    path="bundles/tiny-cpu",
    name="tiny",
    created="2026-01-01T00:00:00+00:00",
    target="cpu",
    target_sha256="0" * 64,
    runtime="deepsparse",
    version="1.8.0",
    instruction_set="avx2",
    locked={"deepsparse": "1.8.0", "numpy": "1.26.4"},
    precision="fp32",
    size=3_300_000,
    model_sha256="1" * 64,
    zeros=900,
    total=1000,
    operators={"Conv": 5, "Relu": 4},
    supported_ops=1.0,
    parity=1e-7,
    max_abs=2e-7,
)


def latency(ratio: Measurement, *names: str) -> Latency:
    """A latency of two variants, the second over the first."""
    first, second = names or ("old", "new")
    variants = {name: Variant(name, 900, 1.0, 1.1, None, 100_000_000) for name in (first, second)}
    steady = Steadiness(1.1, 0.0, 0.01, 50.0, 0, Contention(0.0, False))
    return Latency(16, 2, variants, {second: ratio}, {}, 12, 240, 40.0, 2, 0.05, steady)


def example(*statuses: Status, **changes: object) -> Check:
    """A comparison of two bundles; `statuses` are those of its gates, `changes` other fields."""
    ratio = Measurement(1.05, 1.04, 1.06)
    made = Check(
        kind="against",
        created="2026-02-01T00:00:00+00:00",
        version="0.1.0",
        seconds=61.0,
        budget=60.0,
        machine=Machine("A processor", (0, 1), 2**34, "Linux 6"),
        batch_size=16,
        new=BUNDLE_FACTS,
        old=replace(BUNDLE_FACTS, path="bundles/older"),
        baseline=None,
        latency=latency(ratio),
        twins=latency(Measurement(1.0, 0.99, 1.01)),
        accuracy=None,
        measured={"latency.p50.ratio": ratio, "speedup": None},
        gates=tuple(Verdict(f"gate {at}", status, "shown") for at, status in enumerate(statuses or ("pass",))),
        causes=(),
        notes=("Something was unsteady.",),
    )
    return replace(made, **changes)  # type: ignore[arg-type]
