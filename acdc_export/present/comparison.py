"""A comparison as text: what to deploy first, then the numbers that it comes of."""

from __future__ import annotations

from collections.abc import Callable

from ..evidence.gates import shown_bytes
from ..evidence.latency import Latency, Variant, throughput
from ..records.comparison import Candidate, Comparison
from .report import Table, count, gate_table, interval, machine_line


def headline(found: Comparison) -> str:
    """One line: what to deploy."""
    if found.recommended is None:
        return f"{found.pair}: nothing to recommend, since no sparse half passed its gates."
    return f"{found.pair}: deploy the {label(found.candidate(found.recommended))}."


def summary(found: Comparison) -> list[str]:
    """Why that, and what speaks against it, a line each."""
    lines = []
    if found.recommended is not None:
        lines += _recommendation(found, found.candidate(found.recommended))
    if all(one.accuracy is None for one in found.candidates):
        lines.append("Accuracy was not measured: speed is all that is compared.")
    return lines


def _recommendation(found: Comparison, best: Candidate) -> list[str]:
    judged, lines = found.latency[0], []
    where = f"At batch {judged.batch_size} it is"
    if ratio := judged.ratios.get(best.name):
        beside = label(found.candidate(found.reference))
        lines.append(f"{where} {interval(ratio.inverse(), 2)} times as fast as the {beside}.")
    if best.versus_dense:
        lines.append(f"{where} {interval(best.versus_dense, 2)} times as fast as the fastest dense twin of all.")
    better = found.better_dense(best.name)
    if better:
        beside = label(found.candidate(better[0]))
        lines.append(f"But the {beside} is at least as accurate, and faster: the zeros win nothing here.")
    if not best.deployable:
        lines.append(f"{best.runtime} may NOT be deployed in production; --require-deployable leaves it out.")
    return lines


def label(one: Candidate) -> str:
    """A candidate for readers: "sparse half in cpu, int8"."""
    return f"{'sparse half' if one.half == 'sparse' else 'dense twin'} in {one.target}, {one.precision}"


def tables(found: Comparison) -> list[Table]:
    """Verdicts, all candidates in the cell that gates judge, and what the other cells add."""
    made = [gate_table(found.verdicts, "Deployments"), _judged(found)]
    if len(found.latency) > 1:
        made.append(_cells(found, "Median latency, milliseconds a batch", lambda variant, cell: f"{variant.p50:.3f}"))
        made.append(
            _cells(found, "Samples a second", lambda variant, cell: f"{throughput(variant, cell.batch_size):,.0f}")
        )
    return made


def context(found: Comparison) -> list[str]:
    """What the numbers rest on."""
    lines = [machine_line(found.machine, None), "Intervals: 95 % for all gates and looks together."]
    lines += [f"Not compared, {name}: {reason}" for name, reason in found.missing.items()]
    return lines + [f"Note: {note}" for note in found.notes]


def _judged(found: Comparison) -> Table:
    judged = found.latency[0]
    rows = [_row(found, one, judged.variants[one.name]) for one in found.by_speed if one.name in judged.variants]
    title = (
        f"Batch {judged.batch_size}, {count(judged.threads, 'thread')}, which the gates judge: milliseconds a batch, "
        f"{judged.launches} launches, {judged.rounds} rounds (*: none is both faster and more accurate)"
    )
    columns = ("", "accuracy", "p50", "p90", "p99", "times as fast", "samples/s", "peak memory", "load s", "file")
    return Table(title, columns, tuple(rows), optional=("load s", "p99", "p90", "file", "peak memory", "samples/s"))


def _row(found: Comparison, one: Candidate, variant: Variant) -> tuple[str, ...]:
    judged = found.latency[0]
    ratio = judged.ratios.get(one.name)
    return (
        f"{'*' if one.name in found.front else ' '} {label(one)}",
        f"{one.accuracy.value:.2f} %" if one.accuracy else "not measured",
        f"{variant.p50:.3f}",
        f"{variant.p90:.3f}",
        "" if variant.p99 is None else f"{variant.p99:.3f}",
        interval(ratio.inverse(), 2) if ratio else "1",
        f"{throughput(variant, judged.batch_size):,.0f}",
        shown_bytes(variant.memory),
        "" if one.loading is None else f"{one.loading:.2f}",
        "" if one.size is None else shown_bytes(one.size),
    )


def _cells(found: Comparison, title: str, shown: Callable[[Variant, Latency], str]) -> Table:
    """A column for each batch size and number of threads."""
    cells = sorted(found.latency, key=lambda cell: (cell.threads, cell.batch_size))
    rows = []
    for one in found.by_speed:
        variants = [(cell.variants.get(one.name), cell) for cell in cells]
        rows.append((label(one), *(shown(variant, cell) if variant else "" for variant, cell in variants)))
    columns = (f"batch {cell.batch_size}, {count(cell.threads, 'thread')}" for cell in cells)
    return Table(title, ("", *columns), tuple(rows))
