"""Several evaluations that were timed together, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ..evidence import latency
from ..evidence.gates import Measurement, Verdict
from ..evidence.latency import Alternation
from ..evidence.metrics import versus_fastest
from ..lowering import Deployment
from ..pair import HALVES
from ..records.comparison import Candidate, Comparison
from ..records.report import Report
from ..version import __version__
from .static import StaticResults
from .timing import Timing, title_of, variant_name


def compare(
    results: Sequence[StaticResults],
    reports: Sequence[Report],
    timing: Timing,
    *,
    reference: str,
    missing: Mapping[str, str],
    survey: bool,
    require_deployable: bool,
    notes: Iterable[str],
    seconds: float,
) -> Comparison:
    """Everything that was measured. Speed is held against the twin in the deployment `reference`, if that is there.

    Args:
        missing: deployments that were asked for and could not be examined, and why. Of a survey they are no failure.
    """
    evaluation = results[0].evaluation
    judged = next(iter(timing.workloads.values()))
    candidates = _candidates(results, reports, judged)
    dense = [candidate.name for candidate in candidates if candidate.half == "dense"]
    first = variant_name("dense", reference) if variant_name("dense", reference) in dense else dense[0]
    names = [first, *(candidate.name for candidate in candidates if candidate.name != first)]
    verdicts = [_verdict(result.evaluation.deployment, report) for result, report in zip(results, reports, strict=True)]
    if not survey:
        verdicts += [Verdict(name, "not measured", reason) for name, reason in missing.items()]
    latencies = {
        workload: alternation.latency({name: name for name in names})
        for workload, alternation in timing.workloads.items()
    }
    steadiness = [
        note for workload, seen in latencies.items() for note in latency.notes(seen, title_of(workload, evaluation))
    ]
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        seconds=round(seconds, 1),
        pair=evaluation.pair.name,
        machine=evaluation.machine,
        candidates=tuple(
            replace(candidate, versus_dense=_versus_dense(candidate.name, dense, judged))
            if candidate.half == "sparse"
            else candidate
            for candidate in candidates
        ),
        latency=tuple(latencies.values()),
        verdicts=tuple(verdicts),
        survey=survey,
        require_deployable=require_deployable,
        missing=dict(missing),
        notes=(*notes, *timing.notes, *steadiness),
    )


def _candidates(results: Sequence[StaticResults], reports: Sequence[Report], judged: Alternation) -> list[Candidate]:
    """The halves of all evaluations, and the twin in those controls that are no evaluation themselves."""
    candidates = [
        candidate for result, report in zip(results, reports, strict=True) for candidate in _halves(result, report)
    ]
    names = {candidate.name for candidate in candidates}
    controls = {control.name: control for result in results for control in result.evaluation.controls}
    for control in controls.values():
        name = variant_name("dense", control.name)
        if name in judged.variants and name not in names:
            candidates.append(_control(name, control))
    return candidates


def _halves(result: StaticResults, report: Report) -> Iterator[Candidate]:
    evaluation, accuracy = result.evaluation, result.accuracy
    for half in HALVES:
        sparse = half == "sparse"
        yield Candidate(
            name=variant_name(half, evaluation.deployment.name),
            half=half,
            target=evaluation.target.name,
            precision=evaluation.deployment.precision,
            runtime=report.target.runtime,
            version=report.target.version,
            deployable=report.target.deployable,
            accuracy=None if accuracy is None else accuracy.sparse if sparse else accuracy.dense,
            size=report.size.sparse if sparse else report.size.dense,
            loading=result.loading[str(evaluation.gated)][half],
            verdict=report.verdict if sparse else None,
            bundle=f"{evaluation.pair.name}-{evaluation.deployment.name}" if sparse else None,
        )


def _control(name: str, control: Deployment) -> Candidate:
    """The twin in a runtime that was not asked for itself, but is what a target is held against."""
    target = control.target
    return Candidate(
        name=name,
        half="dense",
        target=target.name,
        precision=control.precision,
        runtime=target.runtime.name,
        version=control.installed.environment.locked.get(target.runtime.name, ""),
        deployable=target.license.deployable,
        accuracy=None,
        size=None,
        loading=None,
    )


def _versus_dense(name: str, dense: Sequence[str], judged: Alternation) -> Measurement | None:
    return versus_fastest(judged.latency({variant: variant for variant in (name, *dense)}).ratios)


def _verdict(deployment: Deployment, report: Report) -> Verdict:
    """That of a bundle; the gates that did not pass say why."""
    why = "; ".join(f"{gate.gate}: {gate.detail}" for gate in report.gates if gate.status != "pass")
    return Verdict(deployment.name, report.verdict, why or f"{len(report.gates)} gates passed")
