"""The report as tables of text: what the terminal and Markdown both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..evidence.gates import Measurement, Status, Verdict, shown_bytes
from ..evidence.latency import Latency, throughput
from ..evidence.parity import Parity
from ..machine import Machine
from ..records.report import Report


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows. All columns but the first are numbers, unless `text` says otherwise."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: bool = False
    optional: tuple[str, ...] = ()  # columns that a narrow terminal may leave out, the first one first
    statuses: tuple[Status, ...] = ()  # of the rows, where they are verdicts


MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not measured": "–"}


def headline(report: Report) -> str:
    """One line: what was put where, and the verdict."""
    runtime = f"{report.target.runtime} {report.target.version}"
    return f"{report.pair.name} on {report.target.name} ({runtime}, {report.precision}): {report.verdict.upper()}"


def summary(report: Report) -> list[str]:
    """The findings that a reader wants first, a line each: against the twin, and against the best dense alternative."""
    lines = []
    speedup = report.latency[0].ratios.get("dense")
    if speedup:
        where = f"At batch {report.gated_batch_size}"
        line = f"{where} the sparse half is {_times(speedup)} than its dense twin in the same engine"
        versus = report.measured.get("speedup.vs_control")
        if versus and report.control and report.control != "dense":
            line += f", and {_times(versus)} than the fastest dense alternative, the {_variant_name(report.control)}"
        lines.append(f"{line}.")
    if report.accuracy:
        drop = report.accuracy.drop
        lines.append(
            f"It gets {report.accuracy.sparse.value:.2f} % of {report.accuracy.samples:,} samples right, the twin "
            f"{report.accuracy.dense.value:.2f} %: a drop of {interval(drop, 2)} points."
        )
    if report.quantization:
        cost = report.quantization
        lines.append(
            f"Its integers cost {interval(cost.drop, 2)} points: in float it gets {cost.dense.value:.2f} % right."
        )
    return lines


def tables(report: Report) -> list[Table]:
    """All tables, in reading order: gates, the two halves, latency for each batch size."""
    return [
        gate_table(report.gates),
        _halves(report),
        *(_latency(facts, judged=at == 0) for at, facts in enumerate(report.latency) if facts.variants),
    ]


def details(report: Report) -> list[Table]:
    """For those who read on: zeros after every pass, and both halves by class."""
    steps = tuple(
        (step.name, f"{step.zeros:,}", f"{step.total:,}", f"{100 * step.zeros / step.total:.2f} %")
        for step in report.structure.steps
    )
    found = [Table("Zeros in all weighted operators, after each pass", ("", "zeros", "weights", "share"), steps)]
    if report.accuracy:
        classes = tuple(
            (str(one.label), f"{one.samples:,}", f"{one.sparse:,}", f"{one.dense:,}") for one in report.accuracy.classes
        )
        found.append(Table("Right, by class", ("class", "samples", "sparse", "dense twin"), classes))
    return found


def context(report: Report) -> list[str]:
    """What the numbers rest on: pair, machine, license, notes."""
    target, pair = report.target, report.pair
    lines = [
        f"Pair: {pair.path}, {pair.kind} ({pair.scope}), {100 * pair.sparsity:g} % aimed at.",
        machine_line(report.machine, target.instruction_set),
        f"License: {target.license}; {'may' if target.deployable else 'may NOT'} be deployed in production.",
    ]
    if not target.deployable and target.notice:
        lines.append(f"Notice: {target.notice}")
    lines.append("Intervals: 95 % for all gates and looks together.")
    return lines + [f"Note: {note}" for note in report.notes]


def gate_table(gates: Sequence[Verdict], title: str = "Gates") -> Table:
    """What became of each gate, or of whatever else has a verdict."""
    rows = tuple((f"{MARKS[gate.status]} {gate.gate}", gate.status, gate.detail) for gate in gates)
    columns = (title.lower().removesuffix("s"), "verdict", "measured")
    return Table(title, columns, rows, text=True, statuses=tuple(gate.status for gate in gates))


def machine_line(machine: Machine, instruction_set: str | None) -> str:
    """The machine that was measured on, in a line."""
    cpus = ", ".join(str(cpu) for cpu in machine.cpus)
    isa = f", {instruction_set}" if instruction_set else ""
    return f"Machine: {machine.processor}{isa}; {count(len(machine.cpus), 'thread')}, pinned to CPU {cpus}."


def _halves(report: Report) -> Table:
    structure, accuracy = report.structure, report.accuracy
    zeros = "not found"
    if structure.zeros is not None and structure.total:
        zeros = f"{100 * structure.zeros / structure.total:.2f} % of {structure.total:,}"
    parity = [
        (f"tolerance needed, batch {size} (parity)", _parity(halves["sparse"]), _parity(halves["dense"]))
        for size, halves in report.parity.items()
    ]
    rows = [
        ("zeros in pruned layers", zeros, ""),
        ("operators on the fast path", _share(structure.supported_ops), _share(structure.dense_supported_ops)),
        *parity,
        ("model file", shown_bytes(report.size.sparse), shown_bytes(report.size.dense)),
        *(
            (f"seconds to load, batch {size}", f"{halves['sparse']:.2f}", f"{halves['dense']:.2f}")
            for size, halves in report.loading.items()
        ),
    ]
    if structure.unsupported:
        rows.insert(2, ("off the fast path", ", ".join(structure.unsupported), ""))
    if accuracy:
        rows.insert(0, ("accuracy", f"{accuracy.sparse.value:.2f} %", f"{accuracy.dense.value:.2f} %"))
        rows.insert(1, ("agreement of both halves", f"{accuracy.agreement:.2f} %", ""))
    else:
        rows.insert(0, ("accuracy", "not measured", "not measured"))
    return Table("The two halves", ("", "sparse", "dense twin"), tuple(rows))


def _latency(facts: Latency, *, judged: bool) -> Table:
    rows = []
    for name, variant in facts.variants.items():
        ratio = facts.ratios.get(name)
        rows.append(
            (
                _variant_name(name),
                f"{variant.p50:.3f}",
                f"{variant.p90:.3f}",
                "" if variant.p99 is None else f"{variant.p99:.3f}",
                f"{throughput(variant, facts.batch_size):,.0f}",
                shown_bytes(variant.memory),
                interval(ratio, 2) if ratio else "",
            )
        )
    what = f"Batch {facts.batch_size}, {count(facts.threads, 'thread')}{', which the gates judge' if judged else ''}"
    title = f"{what}: milliseconds a batch, {facts.launches} launches, {facts.rounds} rounds"
    columns = ("", "p50", "p90", "p99", "samples/s", "peak memory", "times the sparse")
    return Table(title, columns, tuple(rows), optional=("samples/s", "peak memory", "p99", "p90"))


def _variant_name(name: str) -> str:
    half, _, where = name.partition("@")
    shown = "dense twin" if half == "dense" else half
    return f"{shown} in {where}" if where else shown


def _times(ratio: Measurement) -> str:
    if ratio.value >= 1:
        return f"{ratio.value:.2f}x faster [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{1 / ratio.value:.2f}x slower [{1 / ratio.high:.2f}, {1 / ratio.low if ratio.low else float('inf'):.2f}]"


def interval(found: Measurement, digits: int) -> str:
    """An estimate and its interval, in so many digits after the point."""
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def count(number: int, what: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _share(fraction: float | None) -> str:
    return "not told" if fraction is None else f"{100 * fraction:.4g} %"


def _parity(parity: Parity) -> str:
    return f"{parity.required:.1e} of {parity.tolerance:.0e}"
