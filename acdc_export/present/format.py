"""Numbers as text, and the parts that several documents share."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence.gates import Measurement, Verdict, shown_bytes
from ..evidence.latency import Variant
from ..machine import Machine
from .document import Notes, Table

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not measured": "–"}

size = shown_bytes  # as gates show them


def interval(measurement: Measurement, digits: int) -> str:
    """An estimate and its interval, in so many digits after the point."""
    return f"{measurement.value:.{digits}f} [{measurement.low:.{digits}f}, {measurement.high:.{digits}f}]"


def count(number: int, what: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def percent(part: float, whole: float = 1.0, digits: int = 2) -> str:
    """A part of a whole, in percent."""
    return f"{100 * part / whole:.{digits}f} %"


def share(fraction: float | None) -> str:
    """What an engine says of its operators, in as few digits as it takes."""
    return "not told" if fraction is None else f"{100 * fraction:.4g} %"


def zeros(number: int | None, total: int | None) -> str:
    """How many of the weights are zero."""
    return "not found" if number is None or not total else f"{percent(number, total)} of {total:,}"


def milliseconds(variant: Variant) -> tuple[str, str, str]:
    """The median, the 90th and the 99th percentile; the last is empty where there were too few runs for it."""
    return f"{variant.p50:.3f}", f"{variant.p90:.3f}", "" if variant.p99 is None else f"{variant.p99:.3f}"


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


def basis(lines: Sequence[str], notes: Sequence[str], origin: str = "") -> Notes:
    """What the numbers rest on: the facts, the notes, and where the record comes from."""
    origins = [origin] if origin else []
    return Notes("What this rests on", (*lines, *(f"Note: {note}" for note in notes), *origins))
