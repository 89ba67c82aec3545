"""What gates may ask of a latency measurement, while it runs and when it is done."""

from __future__ import annotations

from ..evidence.gates import Measurement
from ..evidence.latency import Latency
from .setup import Trial


def metrics(trial: Trial, measured: Latency) -> dict[str, Measurement | None]:
    """The metrics that come of time; None where not measured. The reference is the twin in the same engine."""
    speedup, tail = measured.ratios.get("dense"), measured.tails.get("dense")
    return {
        "latency.p50.ratio": speedup.inverse() if speedup else None,
        "latency.p99.ratio": tail.inverse() if tail else None,
        "speedup": speedup,
        "speedup.vs_control": _versus_control(trial, measured),
    }


def fastest_dense(measured: Latency) -> str | None:
    """The dense arm that a user would pick instead; None where none was measured."""
    return min(measured.ratios, key=lambda name: measured.ratios[name].value, default=None)


def _versus_control(trial: Trial, measured: Latency) -> Measurement | None:
    """The sparse half against the fastest of all dense arms; None unless every control of the target was measured.

    Which one is the fastest is itself uncertain, so each end of the interval is the least of all arms' ends.
    """
    if len(measured.ratios) <= len(trial.seat.target.benchmark.controls):  # the twin in the same engine is one more
        return None
    ratios = measured.ratios.values()
    return Measurement(
        min(ratio.value for ratio in ratios), min(ratio.low for ratio in ratios), min(ratio.high for ratio in ratios)
    )
