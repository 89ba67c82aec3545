"""What is shown of a check: a bundle beside an older one, itself or stored ratios."""

from __future__ import annotations

from collections.abc import Callable

from ..evidence.latency import Latency
from ..records.check import BundleFacts, Check
from .document import Document, Table
from .format import basis, gate_table, interval, machine_line, milliseconds, share, size, zeros

_VARIANTS = {"old": "old, sparse half", "new": "new, sparse half", "sparse": "sparse half", "dense": "dense twin"}
_TWINS = {"old": "old, dense twin", "new": "new, dense twin"}


def document(check: Check) -> Document:
    """The verdict, where a slowdown comes from, gates, latency, and both bundles."""
    beside = {
        "against": f"against {check.old.path if check.old else ''}",
        "self-test": "against itself",
        "baseline": f"against {check.baseline}",
        "save": f"to be stored in {check.baseline}",
    }[check.kind]
    facts = [
        machine_line(check.machine, check.new.instruction_set),
        f"Intervals: 95 % for all gates and looks together; {check.latency.looks} of the looks taken.",
    ]
    origin = f"Made on {check.created} by acdc-export {check.version}, in {check.seconds:.0f} s."
    return Document(
        headline=f"{check.new.path} {beside}: {check.verdict.upper()}",
        status=check.verdict,
        summary=tuple(_summary(check)),
        sections=(gate_table(check.gates), *_measured(check), _sides(check), basis(facts, check.notes, origin)),
    )


def _summary(check: Check) -> list[str]:
    """The finding that a reader wants first, and where it comes from."""
    lines = []
    ratio, speedup = check.measured.get("latency.p50.ratio"), check.measured.get("speedup")
    where = f"At batch {check.batch_size}"
    if ratio and check.kind == "baseline":
        lines.append(f"{where} the sparse half takes {interval(ratio, 3)} times as long as its stored speed-up has it.")
    elif ratio:
        lines.append(f"{where} the new sparse half takes {interval(ratio, 3)} times as long as the old one.")
    if speedup:
        lines.append(f"{where} the dense twin takes {interval(speedup, 3)} times as long as the sparse half.")
    if check.accuracy:
        lines.append(f"The new one gets {interval(check.accuracy.drop, 2)} points fewer of the samples right.")
    return lines + [f"{cause.where.capitalize()}: {cause.text}" for cause in check.causes]


def _measured(check: Check) -> list[Table]:
    """Latency of the sparse halves, and of the twins where they were measured."""
    latency, twins = check.latency, check.twins
    tables = []
    if latency.variants:
        title = (
            f"Batch {check.batch_size}: milliseconds a batch, {latency.launches} launches, "
            f"{latency.rounds} rounds, {latency.seconds:.0f} s"
        )
        tables.append(_latency(title, latency, _VARIANTS))
    if twins and twins.variants:
        tables.append(_latency(f"The twins: {twins.launches} launches, {twins.rounds} rounds", twins, _TWINS))
    return tables


def _latency(title: str, latency: Latency, names: dict[str, str]) -> Table:
    rows = []
    for name, variant in latency.variants.items():
        ratio = latency.ratios.get(name)
        times = interval(ratio, 3) if ratio else ""
        rows.append((names[name], *milliseconds(variant), size(variant.memory), times))
    columns = ("", "p50", "p90", "p99", "peak memory", "times the first")
    return Table(title, columns, tuple(rows), optional=("peak memory", "p99", "p90"))


def _sides(check: Check) -> Table:
    sides = [check.new] if check.old is None or check.kind == "self-test" else [check.old, check.new]
    facts: dict[str, Callable[[BundleFacts], str]] = {
        "made": lambda side: side.created[:10],
        "runtime": lambda side: f"{side.runtime} {side.version}, {side.precision}",
        "zeros in pruned layers": lambda side: zeros(side.zeros, side.total),
        "operators on the fast path": lambda side: share(side.supported_ops),
        "model file": lambda side: size(side.size),
        "tolerance of golden outputs (parity)": lambda side: f"{side.parity:.1e}",
    }
    rows = tuple((name, *(fact(side) for side in sides)) for name, fact in facts.items())
    return Table("The bundles", ("", "bundle") if len(sides) == 1 else ("", "old", "new"), rows)
