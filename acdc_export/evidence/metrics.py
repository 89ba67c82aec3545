"""The metrics that a gate may ask for. An entry says meaning, unit, where the value comes from, why it may be missing.

An export and a check fill in the same `Facts` after they measured, and the same `Scope` before. Everything else about
a metric stands in its entry in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .accuracy import Accuracy
from .measurement import Measurement
from .parity import Parity

RunKind = Literal["export", "against", "self-test", "baseline", "save"]
"""An export, or one of the four kinds of check."""

_BUNDLE_CHECKS: tuple[RunKind, ...] = ("against", "self-test")
_STORED_CHECKS: tuple[RunKind, ...] = ("baseline", "save")
_CHECKS = (*_BUNDLE_CHECKS, *_STORED_CHECKS)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run found out about a sparse half at the gated batch size. None, or empty, is what it didn't measure.

    The reference is the dense twin in an export, and the old bundle's sparse half in a check. Beside stored ratios,
    the reference is what they let expect.
    """

    accuracy: Accuracy | None = None  # of the sparse half, and as "dense" of its reference
    quantization: Accuracy | None = None  # of the INT8 sparse half, and as "dense" of the same half in FP32
    parities: tuple[Parity, ...] = ()  # of all outputs that were held against reference outputs
    zeros: int | None = None  # in the pruned layers, as deployed
    total: int | None = None  # weights in the pruned layers
    size: int | None = None  # bytes of the model file
    supported_ops: float | None = None  # fraction (0 to 1) of operators on the engine's fast path
    peak_memory: int | None = None  # bytes of the process, over all launches
    p50_ratio: Measurement | None = None  # median latency / the reference's
    p99_ratio: Measurement | None = None  # 99th percentile of latency / the reference's
    speedup: Measurement | None = None  # the twin's median latency / the sparse half's, in the same engine
    alternatives: Mapping[str, Measurement | None] = field(default_factory=dict)
    """Each dense alternative's median latency / the sparse half's. None is one that was asked for but not measured."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a run will measure, as it is known before anything runs. Quantization and controls are an export's."""

    kind: RunKind
    samples: bool  # accuracy is judged
    target: str = ""
    precision: str = "fp32"
    quantized: bool = False
    controls: bool = False  # the target names dense alternatives


def _always_measured(scope: Scope) -> str | None:
    return None


@dataclass(frozen=True)
class Metric:
    """What a gate may ask for.

    `unchanged` is the value where nothing got worse, for metrics that compare. `sampled` metrics have an interval and
    share the error that all intervals of a run may make; the others are counted. `timed` metrics come from latency,
    and measuring may end as soon as their gates are decided.

    `value` computes the metric, or None where its facts are missing. `missing` gives the reason why a run of this
    scope won't measure the metric, as a phrase after a colon, or None where it will.
    """

    meaning: str
    value: Callable[[Facts], Measurement | None]
    missing: Callable[[Scope], str | None] = _always_measured
    unit: Literal["", "bytes", "percent"] = ""
    unchanged: float | None = None
    sampled: bool = False
    timed: bool = False


def values(facts: Facts) -> dict[str, Measurement | None]:
    """All metrics by name, in the order of `METRICS`; None where the run did not measure one."""
    return {name: metric.value(facts) for name, metric in METRICS.items()}


def timed_values(facts: Facts) -> dict[str, Measurement | None]:
    """The same, of the metrics that come from latency."""
    return {name: metric.value(facts) for name, metric in METRICS.items() if metric.timed}


def unmeasured(scope: Scope) -> dict[str, str]:
    """The metrics that a run of this scope won't measure, and why."""
    reasons = ((name, metric.missing(scope)) for name, metric in METRICS.items())
    return {name: reason for name, reason in reasons if reason is not None}


def versus_fastest(alternatives: Mapping[str, Measurement | None]) -> Measurement | None:
    """The ratio of the fastest alternative; None where there is none, or one of them was not measured.

    Which alternative is the fastest is itself uncertain, so both ends of the interval are the least of all.
    """
    ratios = [ratio for ratio in alternatives.values() if ratio is not None]
    if not ratios or len(ratios) < len(alternatives):
        return None
    return Measurement(
        min(ratio.value for ratio in ratios), min(ratio.low for ratio in ratios), min(ratio.high for ratio in ratios)
    )


def _exact(value: float | None) -> Measurement | None:
    return None if value is None else Measurement.exact(value)


def _worst(numbers: list[float]) -> Measurement | None:
    return Measurement.exact(max(numbers)) if numbers else None


def _sparsity(facts: Facts) -> Measurement | None:
    return None if facts.zeros is None or not facts.total else Measurement.exact(facts.zeros / facts.total)


def _missing_in(
    reasons: Mapping[RunKind, str], otherwise: Callable[[Scope], str | None] = _always_measured
) -> Callable[[Scope], str | None]:
    """A `missing` with a fixed reason for some kinds of run; `otherwise` decides for the others."""
    return lambda scope: reasons.get(scope.kind) or otherwise(scope)


def _without_samples(scope: Scope) -> str | None:
    return None if scope.samples else "give samples with --data"


def _without_quantization(scope: Scope) -> str | None:
    if not scope.quantized:
        return f"{scope.precision} is not quantized; --precision int8 is"
    return _without_samples(scope)


def _without_controls(scope: Scope) -> str | None:
    return None if scope.controls else f"the target {scope.target} has no controls"


_SELF_TEST: dict[RunKind, str] = {"self-test": "a self-test is of latency"}

METRICS = {
    "latency.p50.ratio": Metric(
        "median latency over the reference's",
        lambda facts: facts.p50_ratio,
        _missing_in({"save": "nothing is compared while ratios are stored"}),
        unchanged=1.0,
        sampled=True,
        timed=True,
    ),
    "latency.p99.ratio": Metric(
        "99th percentile of latency over the reference's",
        lambda facts: facts.p99_ratio,
        _missing_in(dict.fromkeys(_STORED_CHECKS, "a baseline holds medians")),
        unchanged=1.0,
        sampled=True,
        timed=True,
    ),
    "speedup": Metric(
        "the twin's median latency over the sparse half's, in the same engine",
        lambda facts: facts.speedup,
        _missing_in(
            dict.fromkeys(_BUNDLE_CHECKS, "`check` holds bundles against each other; an export measures the speed-up")
        ),
        sampled=True,
        timed=True,
    ),
    "speedup.vs_control": Metric(
        "the fastest dense alternative's median latency over the sparse half's",
        lambda facts: versus_fastest(facts.alternatives),
        _missing_in(dict.fromkeys(_CHECKS, "`check` runs no controls; an export does"), _without_controls),
        sampled=True,
        timed=True,
    ),
    "accuracy.drop": Metric(
        "points of accuracy lost against the reference",
        lambda facts: facts.accuracy.drop if facts.accuracy else None,
        _missing_in(
            {**_SELF_TEST, **dict.fromkeys(_STORED_CHECKS, "there is no older bundle to compare with")},
            _without_samples,
        ),
        unit="percent",
        unchanged=0.0,
        sampled=True,
    ),
    "accuracy.sparse": Metric(
        "percent of samples that the sparse half gets right",
        lambda facts: facts.accuracy.sparse if facts.accuracy else None,
        _missing_in(
            {**_SELF_TEST, **dict.fromkeys(_STORED_CHECKS, "samples are judged with --against only")},
            _without_samples,
        ),
        unit="percent",
        sampled=True,
    ),
    "memory.peak": Metric(
        "the most memory that the sparse half's process held", lambda facts: _exact(facts.peak_memory), unit="bytes"
    ),
    "parity": Metric(
        "the smallest tolerance at which all outputs agree with the reference outputs",
        lambda facts: _worst([parity.required for parity in facts.parities]),
    ),
    "parity.max_abs": Metric(
        "the largest absolute difference of an output from its reference output",
        lambda facts: _worst([parity.max_abs for parity in facts.parities]),
    ),
    "quantization.drop": Metric(
        "INT8 accuracy drop: points of accuracy that the sparse half loses in INT8 against itself in FP32",
        lambda facts: facts.quantization.drop if facts.quantization else None,
        _missing_in(
            dict.fromkeys(_CHECKS, "`check` has no FP32 half to compare with; an export has"), _without_quantization
        ),
        unit="percent",
        sampled=True,
    ),
    "size": Metric("bytes of the sparse half's model file", lambda facts: _exact(facts.size), unit="bytes"),
    "sparsity": Metric("fraction of zeros in the pruned layers' weights, as deployed", _sparsity),
    "supported_ops": Metric(
        "fraction of operators on the engine's fast path", lambda facts: _exact(facts.supported_ops)
    ),
}
"""By name; records list metrics in this order. All are of the sparse half at the gated batch size. docs/design.md has
a row for every metric."""
