"""Stored ratios, for where the old bundle can't run: keyed to a class of machines, and refused by every other.

A ratio outlives the milliseconds that it was made of, but not the machine: another instruction set or number of cores
changes the two halves by different factors. A baseline is thus a list of entries, one for each class of machines.

Nor is it the same at every hour: what else the machine does slows a sparse half by another factor than its twin. The
interval of a single check knows nothing of that. So an entry holds several checks of the same model, and a new one is
judged by how far these lie apart (a prediction interval); beside a single one, nothing can be said.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..bundle import Manifest
from ..errors import BaselineError, UnlikeMachine
from ..evidence.gates import Measurement
from ..evidence.stats import t_quantile
from ..files import output_errors, read_record

SCHEMA_VERSION = 1

KEPT = 30
"""Checks that an entry holds; older ones say less of what the machine does now."""

FEW = 4
"""Fewer checks than these make wide intervals: Student's t with so few degrees of freedom."""

_ELSEWHERE = "with --save"


@dataclass(frozen=True)
class MachineClass:
    """What has to be the same for a stored ratio to mean anything."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    processor: str
    instruction_set: str | None
    cores: int  # that were measured on

    def __str__(self) -> str:
        shown = f", {self.instruction_set}" if self.instruction_set else ""
        return f"{self.processor}{shown}, {self.cores} cores"


@dataclass(frozen=True)
class Stored:
    """What one check found."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    created: str
    speedup: Measurement  # the twin's median latency over the sparse half's


@dataclass(frozen=True)
class Entry:
    """What was measured of one model on one class of machines."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    machine: MachineClass
    runtime: str
    version: str
    model_sha256: str  # of the sparse half's file
    zeros: int | None
    total: int | None
    checks: tuple[Stored, ...]  # the oldest first

    @property
    def spread(self) -> float | None:
        """Standard deviation of the checks' logarithms, or None where there is a single one."""
        logs = [math.log(one.speedup.value) for one in self.checks]
        return statistics.stdev(logs) if len(logs) > 1 else None

    def joined(self, older: Entry) -> Entry:
        """This entry with the checks of an older one before its own, if that is of the same model and runtime."""
        if replace(older, checks=()) != replace(self, checks=()):
            return self
        return replace(self, checks=(*older.checks, *self.checks)[-KEPT:])


@dataclass(frozen=True)
class Baseline:
    """The ratios of one model on one target."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    target: str
    precision: str
    batch_size: int
    entries: tuple[Entry, ...]

    def of(self, machine: MachineClass) -> Entry:
        """What was stored on such a machine. Raises `UnlikeMachine`."""
        for entry in self.entries:
            if entry.machine == machine:
                return entry
        known = "; ".join(str(entry.machine) for entry in self.entries) or "no machine at all"
        raise UnlikeMachine(
            f"The baseline of {self.name} holds no ratios of a machine like this one ({machine}), but of: {known}.",
            "Store some on such a machine, with `acdc-export check NEW --save FILE`: a file holds many.",
        )


def read(path: Path, manifest: Manifest) -> Baseline:
    """The baseline in a file, for the bundle with this manifest.

    Raises:
        BaselineError: there is none, it is damaged or of another schema, or of another model, target, precision or
            batch size.
    """
    anew = f"Make one with: acdc-export check NEW --save {path}"
    if not path.is_file():
        raise BaselineError(f"There is no baseline at {path}.", anew)
    found = read_record(path, Baseline, SCHEMA_VERSION, BaselineError, anew)
    wanted = (manifest.name, manifest.target, manifest.precision, manifest.gated_batch_size)
    names = ("model", "target", "precision", "batch size")
    for what, here, stored in zip(
        names, wanted, (found.name, found.target, found.precision, found.batch_size), strict=True
    ):
        if here != stored:
            raise BaselineError(f"{path} is of the {what} {stored}; the bundle's is {here}.", anew)
    if not all(entry.checks for entry in found.entries):
        raise BaselineError(f"{path} holds an entry without a check.", anew)
    speedups = [one.speedup for entry in found.entries for one in entry.checks]
    if not all(0 < one.low <= one.value <= one.high < math.inf for one in speedups):
        raise BaselineError(f"{path} holds a speed-up that is none.", anew)
    return found


def save(path: Path, manifest: Manifest, entry: Entry) -> Entry:
    """Write the entry into a baseline; returns what its class of machines has there now.

    It joins the checks that are there, if they are of the same model and runtime, and else takes their place. Entries
    of other classes stay.

    Raises:
        BaselineError: the file that is there is another's.
        OutputError: it can't be written; the one that is there stays.
    """
    entries: tuple[Entry, ...] = ()
    if path.exists():
        there = read(path, manifest).entries
        for old in there:
            entry = entry.joined(old)
        entries = tuple(old for old in there if old.machine != entry.machine)
    made = Baseline(manifest.name, manifest.target, manifest.precision, manifest.gated_batch_size, (*entries, entry))
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(made)}, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with output_errors(path, _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return entry


def relative(now: Measurement, entry: Entry, alpha: float) -> Measurement:
    """How many times as long the sparse half takes as the stored speed-ups let expect.

    The interval is where a check of the same model lies but for a share `alpha` of all times: a prediction interval
    on the logarithm, Student's t over the stored checks (Hahn and Meeker 1991, section 4.3). It is never narrower than
    those of the checks themselves. Beside a single stored check it is endless.
    """
    logs = [math.log(one.speedup.value) for one in entry.checks]
    count, spread = len(logs), entry.spread
    value = math.exp(sum(logs) / count) / now.value
    if spread is None or now.low <= 0:
        return replace(now, value=value, low=0.0, high=math.inf)
    between = t_quantile(alpha, count - 1) * spread * math.sqrt(1 + 1 / count)
    stored = math.sqrt(sum(_half(one.speedup) ** 2 for one in entry.checks)) / count
    factor = math.exp(min(700.0, max(between, math.hypot(_half(now), stored))))
    return replace(now, value=value, low=value / factor, high=value * factor)


def notes(entry: Entry) -> list[str]:
    """What a reader has to know of the stored checks."""
    if entry.spread is None:
        return [
            "One stored check tells nothing of how far the ratio moves from check to check, so nothing can be decided "
            f"by it. Store more of the same bundle, at different times: {FEW} at least."
        ]
    few = f" With fewer than {FEW} intervals are wide." if len(entry.checks) < FEW else ""
    return [f"The {len(entry.checks)} stored checks differ by {100 * entry.spread:.1f} % (standard deviation).{few}"]


def _half(one: Measurement) -> float:
    """Half of the width of an interval, on the logarithm."""
    return math.log(one.high / one.low) / 2
