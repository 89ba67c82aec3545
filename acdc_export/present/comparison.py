"""What is shown of a comparison: what to deploy first, then the numbers that it comes of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from ..evidence.latency import Latency, Variant, throughput
from ..records.comparison import Candidate, Comparison
from .document import Document, Point, ScatterChart, Section, Table
from .format import basis, count, gate_table, interval, machine_line, milliseconds, size


def document(comparison: Comparison) -> Document:
    """What to deploy and why, a picture, the verdicts, and all candidates in every workload."""
    recommended = comparison.recommended
    if recommended is None:
        headline = f"{comparison.pair}: nothing to recommend, since no sparse half passed its gates."
    else:
        headline = f"{comparison.pair}: deploy the {_label(comparison.candidate(recommended))}."
    facts = [machine_line(comparison.machine, None), "Intervals: 95 % for all gates and looks together."]
    facts += [f"Not compared, {name}: {reason}" for name, reason in comparison.missing.items()]
    origin = f"Made on {comparison.created} by acdc-export {comparison.version}."
    return Document(
        headline=headline,
        status="pass" if recommended else "fail",
        summary=tuple(_summary(comparison)),
        sections=(
            *_chart(comparison),
            gate_table(comparison.verdicts, "Deployments"),
            _judged(comparison),
            *_workloads(comparison),
            basis(facts, comparison.notes, origin),
        ),
    )


def _summary(comparison: Comparison) -> list[str]:
    """Why that deployment, and what speaks against it."""
    lines = []
    if comparison.recommended is not None:
        lines += _reasons(comparison, comparison.candidate(comparison.recommended))
    if all(candidate.accuracy is None for candidate in comparison.candidates):
        lines.append("Accuracy was not measured: speed is all that is compared.")
    return lines


def _reasons(comparison: Comparison, best: Candidate) -> list[str]:
    judged, lines = comparison.latency[0], []
    where = f"At batch {judged.batch_size} it is"
    if ratio := judged.ratios.get(best.name):
        beside = _label(comparison.candidate(comparison.reference))
        lines.append(f"{where} {interval(ratio.inverse(), 2)} times as fast as the {beside}.")
    if best.versus_dense:
        lines.append(f"{where} {interval(best.versus_dense, 2)} times as fast as the fastest dense twin of all.")
    better = comparison.better_dense(best.name)
    if better:
        beside = _label(comparison.candidate(better[0]))
        lines.append(f"But the {beside} is at least as accurate, and faster: the zeros win nothing here.")
    if not best.deployable:
        lines.append(f"{best.runtime} may NOT be deployed in production; --require-deployable leaves it out.")
    if comparison.faster_in_evaluation is not None:
        other = comparison.candidate(comparison.faster_in_evaluation)
        lines.append(f"The {_label(other)} is faster, but {other.runtime} may NOT be deployed in production.")
    return lines


def _label(candidate: Candidate) -> str:
    """A candidate for readers: "sparse half in cpu, int8"."""
    half = "sparse half" if candidate.half == "sparse" else "dense twin"
    return f"{half} in {candidate.target}, {candidate.precision}"


def _chart(comparison: Comparison) -> list[Section]:
    """Latency against accuracy, of the candidates that have both; nothing where none has."""
    points, left_out = [], []
    for candidate in comparison.candidates:
        variant, accuracy = comparison.variant(candidate.name), candidate.accuracy
        if variant is None or accuracy is None:
            left_out.append(_label(candidate))
            continue
        half = cast(Literal["sparse", "dense"], candidate.half)
        front = candidate.name in comparison.front
        points.append(Point(_label(candidate), half, variant.p50, accuracy.value, accuracy.low, accuracy.high, front))
    if not points:
        return []
    chart = ScatterChart(
        name="comparison",
        title="Latency and accuracy",
        caption="Median latency and accuracy of each candidate, with the Pareto front",
        subject=f"{comparison.pair}, batch {comparison.latency[0].batch_size}",
        x="median latency, milliseconds a batch",
        y="accuracy, %",
        points=tuple(points),
        notes=(f"Not in the picture, since accuracy was not measured: {'; '.join(left_out)}.",) if left_out else (),
    )
    return [chart]


def _judged(comparison: Comparison) -> Table:
    judged = comparison.latency[0]
    rows = [
        _row(comparison, candidate, judged.variants[candidate.name])
        for candidate in comparison.by_speed
        if candidate.name in judged.variants
    ]
    title = (
        f"Batch {judged.batch_size}, {count(judged.threads, 'thread')}, which the gates judge: milliseconds a batch, "
        f"{judged.launches} launches, {judged.rounds} rounds (*: none is both faster and more accurate)"
    )
    columns = ("", "accuracy", "p50", "p90", "p99", "times as fast", "samples/s", "peak memory", "load s", "file")
    return Table(title, columns, tuple(rows), optional=("load s", "p99", "p90", "file", "peak memory", "samples/s"))


def _row(comparison: Comparison, candidate: Candidate, variant: Variant) -> tuple[str, ...]:
    judged = comparison.latency[0]
    ratio = judged.ratios.get(candidate.name)
    return (
        f"{'*' if candidate.name in comparison.front else ' '} {_label(candidate)}",
        f"{candidate.accuracy.value:.2f} %" if candidate.accuracy else "not measured",
        *milliseconds(variant),
        interval(ratio.inverse(), 2) if ratio else "1",
        f"{throughput(variant, judged.batch_size):,.0f}",
        size(variant.memory),
        "" if candidate.loading is None else f"{candidate.loading:.2f}",
        "" if candidate.size is None else size(candidate.size),
    )


def _workloads(comparison: Comparison) -> list[Table]:
    """Where there are several workloads, what each candidate takes and yields in them."""
    if len(comparison.latency) < 2:
        return []
    return [
        _by_workload(comparison, "Median latency, milliseconds a batch", lambda variant, _: f"{variant.p50:.3f}"),
        _by_workload(
            comparison,
            "Samples a second",
            lambda variant, workload: f"{throughput(variant, workload.batch_size):,.0f}",
        ),
    ]


def _by_workload(comparison: Comparison, title: str, shown: Callable[[Variant, Latency], str]) -> Table:
    """A column for each batch size and number of threads."""
    workloads = sorted(comparison.latency, key=lambda workload: (workload.threads, workload.batch_size))
    rows = []
    for candidate in comparison.by_speed:
        variants = [(workload.variants.get(candidate.name), workload) for workload in workloads]
        cells = (shown(variant, workload) if variant else "" for variant, workload in variants)
        rows.append((_label(candidate), *cells))
    columns = (f"batch {workload.batch_size}, {count(workload.threads, 'thread')}" for workload in workloads)
    return Table(title, ("", *columns), tuple(rows))
