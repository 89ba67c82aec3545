"""A comparison made by hand: three deployments of a pair, and a control. Those that passed may not be deployed."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.evidence.contention import Contention
from acdc_export.evidence.gates import Measurement, Verdict
from acdc_export.evidence.latency import Latency, Variant
from acdc_export.evidence.steadiness import Steadiness
from acdc_export.machine import Machine
from acdc_export.records.comparison import Candidate, Comparison

CONTROL = "dense@openvino-default"
P50 = {
    "dense@onnxruntime": 8.0,
    "sparse@onnxruntime": 8.0,
    "sparse@cpu": 4.0,
    "dense@cpu": 9.0,
    "sparse@cpu-int8": 2.0,
    "dense@cpu-int8": 5.0,
    CONTROL: 6.0,
}
ACCURACY = {
    "dense@onnxruntime": 91.0,
    "sparse@onnxruntime": 90.0,
    "sparse@cpu": 90.0,
    "dense@cpu": 91.0,
    "sparse@cpu-int8": 89.5,
    "dense@cpu-int8": 90.8,
}


def candidate(name: str, **changes: object) -> Candidate:
    """One of the names in `P50`."""
    half, _, where = name.partition("@")
    target, _, precision = where.partition("-")
    right = ACCURACY.get(name)
    found = Candidate(
        name=name,
        half=half,
        target=target,
        precision=precision or "fp32",
        runtime="deepsparse" if target == "cpu" else target,
        version="1",
        deployable=target != "cpu",
        accuracy=None if right is None else Measurement(right, right - 0.8, right + 0.8),
        size=None if name == CONTROL else 3_000_000,
        loading=None if name == CONTROL else 0.5,
        versus_dense=Measurement(2.5, 2.4, 2.6) if half == "sparse" else None,
        verdict=("fail" if target == "onnxruntime" else "pass") if half == "sparse" else None,
        bundle=f"tiny-{where}" if half == "sparse" else None,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def workload(batch_size: int = 16, threads: int = 2, factor: float = 1.0) -> Latency:
    """What was measured at a batch size."""
    reference = next(iter(P50))
    return Latency(
        batch_size,
        threads,
        {name: Variant(name, 900, factor * p50, 1.1 * factor * p50, None, 100_000_000) for name, p50 in P50.items()},
        {
            name: Measurement(*(p50 / P50[reference] * width for width in (1, 0.98, 1.02)))
            for name, p50 in P50.items()
            if name != reference
        },
        {},
        12,
        240,
        40.0,
        2,
        0.05,
        Steadiness(1.1, 0.0, 0.01, 50.0, 0, Contention(0.0, False)),
    )


def example(**changes: object) -> Comparison:
    """A comparison; `changes` are its fields."""
    made = Comparison(
        created="2026-02-01T00:00:00+00:00",
        version="0.1.0",
        seconds=61.0,
        pair="tiny",
        machine=Machine("A processor", (0, 1), 2**34, "Linux 6"),
        candidates=tuple(candidate(name) for name in P50),
        latency=(workload(),),
        verdicts=tuple(Verdict(name, "pass", "3 gates passed") for name in ("onnxruntime", "cpu", "cpu-int8")),
        survey=False,
        require_deployable=False,
        missing={},
        notes=("Something was unsteady.",),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def change(found: Comparison, name: str, **changes: object) -> Comparison:
    """The same with one candidate changed."""
    candidates = (replace(one, **changes) if one.name == name else one for one in found.candidates)  # type: ignore[arg-type]
    return replace(found, candidates=tuple(candidates))
