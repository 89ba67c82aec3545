"""Several evaluations that were timed together, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ..evidence import latency
from ..evidence.gates import Measurement, Verdict
from ..evidence.latency import Alternation
from ..evidence.metrics import versus_fastest
from ..pair import HALVES
from ..records.comparison import Candidate, Comparison
from ..records.report import Report
from ..version import __version__
from .setup import Deployment
from .static import StaticResults
from .timing import Timing, title_of, variant_name


def compare(
    examined: Sequence[StaticResults],
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
    evaluation = examined[0].evaluation
    judged = next(iter(timing.workloads.values()))
    candidates = [one for both in zip(examined, reports, strict=True) for one in _halves(*both)]
    known = {one.name for one in candidates}
    for control in {one.name: one for each in examined for one in each.evaluation.controls}.values():
        name = variant_name("dense", control.name)
        if name in judged.variants and name not in known:
            candidates.append(_control(name, control))
    dense = [one.name for one in candidates if one.half == "dense"]
    first = variant_name("dense", reference) if variant_name("dense", reference) in dense else dense[0]
    names = [first, *(one.name for one in candidates if one.name != first)]
    verdicts = [_verdict(one.evaluation.deployment, report) for one, report in zip(examined, reports, strict=True)]
    if not survey:
        verdicts += [Verdict(name, "not measured", reason) for name, reason in missing.items()]
    workloads = tuple(workload.seen({name: name for name in names}) for workload in timing.workloads.values())
    titles = (title_of(workload, evaluation) for workload in timing.workloads)
    steadiness = [
        note for workload, title in zip(workloads, titles, strict=True) for note in latency.notes(workload, title)
    ]
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        seconds=round(seconds, 1),
        pair=evaluation.pair.name,
        machine=evaluation.machine,
        candidates=tuple(
            replace(one, versus_dense=_versus_dense(one.name, dense, judged)) if one.half == "sparse" else one
            for one in candidates
        ),
        latency=workloads,
        verdicts=tuple(verdicts),
        survey=survey,
        require_deployable=require_deployable,
        missing=dict(missing),
        notes=(*notes, *timing.notes, *steadiness),
    )


def _halves(found: StaticResults, report: Report) -> Iterator[Candidate]:
    evaluation = found.evaluation
    for half in HALVES:
        right = found.accuracy
        yield Candidate(
            name=variant_name(half, evaluation.deployment.name),
            half=half,
            target=evaluation.target.name,
            precision=evaluation.deployment.precision,
            runtime=report.target.runtime,
            version=report.target.version,
            deployable=report.target.deployable,
            accuracy=None if right is None else right.sparse if half == "sparse" else right.dense,
            size=report.size.sparse if half == "sparse" else report.size.dense,
            loading=found.loading[str(evaluation.gated)][half],
            verdict=report.verdict if half == "sparse" else None,
            bundle=f"{evaluation.pair.name}-{evaluation.deployment.name}" if half == "sparse" else None,
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
    return versus_fastest(judged.seen({one: one for one in (name, *dense)}).ratios)


def _verdict(deployment: Deployment, report: Report) -> Verdict:
    """That of a bundle; the gates that did not pass say why."""
    why = "; ".join(f"{gate.gate}: {gate.detail}" for gate in report.gates if gate.status != "pass")
    return Verdict(deployment.name, report.verdict, why or f"{len(report.gates)} gates passed")
