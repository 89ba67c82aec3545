"""A check for the terminal and as Markdown: the same tables, made of the record alone."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..evidence.gates import Measurement, shown_bytes
from ..evidence.latency import Latency
from ..records.check import BundleFacts, Check
from .markdown import table as markdown_table
from .report import Table, gate_table, interval, machine_line
from .terminal import COLOURS, plain, shown

_VARIANTS = {"old": "old, sparse half", "new": "new, sparse half", "sparse": "sparse half", "dense": "dense twin"}
_TWINS = {"old": "old, dense twin", "new": "new, dense twin"}


def headline(check: Check) -> str:
    """One line: what was held against what, and the verdict."""
    beside = {
        "against": f"against {check.old.path if check.old else ''}",
        "self-test": "against itself",
        "baseline": f"against {check.baseline}",
        "save": f"to be stored in {check.baseline}",
    }[check.kind]
    return f"{check.new.path} {beside}: {check.verdict.upper()}"


def summary(check: Check) -> list[str]:
    """The finding that a reader wants first, and where it comes from."""
    lines = []
    ratio, speedup = check.measured.get("latency.p50.ratio"), check.measured.get("speedup")
    where = f"At batch {check.batch_size}"
    if ratio and check.kind == "baseline":
        lines.append(f"{where} the sparse half takes {_digits(ratio)} times as long as its stored speed-up has it.")
    elif ratio:
        lines.append(f"{where} the new sparse half takes {_digits(ratio)} times as long as the old one.")
    if speedup:
        lines.append(f"{where} the dense twin takes {interval(speedup, 3)} times as long as the sparse half.")
    if check.accuracy:
        lines.append(f"The new one gets {interval(check.accuracy.drop, 2)} points fewer of the samples right.")
    lines += [f"{cause.where.capitalize()}: {cause.text}" for cause in check.causes]
    return lines


def tables(check: Check) -> list[Table]:
    """Gates, latency, and both sides."""
    found = [gate_table(check.gates)]
    if check.latency.variants:
        title = (
            f"Batch {check.batch_size}: milliseconds a batch, {check.latency.launches} launches, "
            f"{check.latency.rounds} rounds, {check.latency.seconds:.0f} s"
        )
        found.append(_latency(title, check.latency, _VARIANTS))
    if check.twins and check.twins.variants:
        found.append(_latency(f"The twins: {check.twins.launches} launches, {check.twins.rounds} rounds",
                              check.twins, _TWINS))  # fmt: skip
    return [*found, _sides(check)]


def context(check: Check) -> list[str]:
    """What the numbers rest on."""
    error = f"Intervals: 95 % for all gates and looks together; {check.latency.looks} of the looks taken."
    return [machine_line(check.machine, check.new.instruction_set), error, *(f"Note: {note}" for note in check.notes)]


def render(check: Check, width: int = 120) -> Group:
    """The whole check, for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text(headline(check), style=f"bold {COLOURS[check.verdict]}")]
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in summary(check)]
    parts += [Padding(shown(table, width - 2), (1, 0, 0, 2)) for table in tables(check)]
    parts.append(Padding(Text("\n".join(context(check)), style="dim"), (1, 0, 0, 2)))
    return Group(*parts)


def text(check: Check) -> str:
    """The same as plain text."""
    return plain(render(check))


def markdown(check: Check) -> str:
    """The whole check, for a job summary or a pull request; ends with a newline."""
    parts = [f"## {headline(check)}", "\n".join(f"- {line}" for line in summary(check))]
    for table in tables(check):
        parts += [f"### {table.title}", markdown_table(table)]
    made = f"Made on {check.created} by acdc-export {check.version}, in {check.seconds:.0f} s."
    parts += ["### What this rests on", "\n".join(f"- {line}" for line in (*context(check), made))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _digits(ratio: Measurement) -> str:
    return interval(ratio, 3)


def _latency(title: str, found: Latency, names: dict[str, str]) -> Table:
    rows = []
    for name, variant in found.variants.items():
        ratio = found.ratios.get(name)
        p99 = "" if variant.p99 is None else f"{variant.p99:.3f}"
        shown_ratio = interval(ratio, 3) if ratio else ""
        rows.append(
            (names[name], f"{variant.p50:.3f}", f"{variant.p90:.3f}", p99, shown_bytes(variant.memory), shown_ratio)
        )
    columns = ("", "p50", "p90", "p99", "peak memory", "times the first")
    return Table(title, columns, tuple(rows), optional=("peak memory", "p99", "p90"))


def _sides(check: Check) -> Table:
    sides = [check.new] if check.old is None or check.kind == "self-test" else [check.old, check.new]
    rows = (
        ("made", *(side.created[:10] for side in sides)),
        ("runtime", *(f"{side.runtime} {side.version}, {side.precision}" for side in sides)),
        ("zeros in pruned layers", *(_zeros(side) for side in sides)),
        ("operators on the fast path", *(_share(side.supported_ops) for side in sides)),
        ("model file", *(shown_bytes(side.size) for side in sides)),
        ("tolerance of golden outputs (parity)", *(f"{side.parity:.1e}" for side in sides)),
    )
    return Table("The bundles", ("", "old", "new")[: 1 + len(sides)] if len(sides) > 1 else ("", "bundle"), rows)


def _zeros(side: BundleFacts) -> str:
    return "not found" if side.sparsity is None else f"{100 * side.sparsity:.2f} % of {side.total:,}"


def _share(fraction: float | None) -> str:
    return "not told" if fraction is None else f"{100 * fraction:.4g} %"
