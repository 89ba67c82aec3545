"""Stored ratios, for where the old bundle can't run: keyed to a class of machines, and refused by every other.

A ratio outlives the milliseconds that it was made of, but not the machine: another instruction set or number of cores
changes the two halves by different factors. A baseline is thus a list of entries, one for each class of machines.

Nor is it the same at every hour: what else the machine does slows a sparse half by another factor than its twin. The
interval of a single check knows nothing of that. So an entry holds several checks of the same model, and a new one is
judged by how far these lie apart (a prediction interval); beside a single one, nothing can be said.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from ..bundle import Manifest
from ..errors import BaselineError, UnlikeMachine
from ..evidence.gates import Measurement
from ..evidence.stats import ALPHA, t_quantile
from ..files import check_file, output_errors, read_record

SCHEMA_VERSION = 1

KEPT = 30
"""Checks that an entry holds; older ones say less of what the machine does now."""

FEW = 6
"""Fewer checks than these make wide intervals: Student's t with so few degrees of freedom."""

_ELSEWHERE = "with --save"
_ENDLESS = 300.0  # on the logarithm


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

    @property
    def hours(self) -> float:
        """From the first check to the last."""
        first, last = (datetime.fromisoformat(one.created) for one in (self.checks[0], self.checks[-1]))
        return abs((last - first).total_seconds()) / 3600

    def half_width(self, alpha: float) -> float:
        """Of the interval in which the logarithm of one more check lies but for a share `alpha`."""
        if self.spread is None:
            return math.inf
        count = len(self.checks)
        return t_quantile(alpha, count - 1) * self.spread * math.sqrt(1 + 1 / count)

    def joined(self, there: Baseline | None) -> Entry:
        """This entry after the checks that a baseline holds for the same machines, model and runtime."""
        older = there.find(self.machine) if there else None
        if older is None or replace(older, checks=()) != replace(self, checks=()):
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

    def find(self, machine: MachineClass) -> Entry | None:
        """What was stored on such a machine, if anything."""
        return next((entry for entry in self.entries if entry.machine == machine), None)

    def of(self, machine: MachineClass) -> Entry:
        """What was stored on such a machine. Raises `UnlikeMachine`."""
        if found := self.find(machine):
            return found
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


def existing(path: Path, manifest: Manifest) -> Baseline | None:
    """What ratios would be added to; None where there is no file yet.

    To be asked before anything is measured. Raises as `read` does, and `OutputError` where nothing can be written.
    """
    check_file(path, _ELSEWHERE)
    return read(path, manifest) if path.exists() else None


def save(path: Path, manifest: Manifest, entry: Entry) -> Entry:
    """Write the entry into a baseline; returns what its class of machines has there now.

    It joins the checks that are there, if they are of the same model and runtime, and else takes their place. Entries
    of other classes stay. Two programs that save at once wait for each other.

    Raises:
        BaselineError: the file that is there is another's.
        OutputError: it can't be written; the one that is there stays.
    """
    with output_errors(path, _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            there = existing(path, manifest)
            entries = there.entries if there else ()
            entry = entry.joined(there)
            others = tuple(old for old in entries if old.machine != entry.machine)
            made = Baseline(
                manifest.name, manifest.target, manifest.precision, manifest.gated_batch_size, (*others, entry)
            )
            text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(made)}, indent=2, allow_nan=False) + "\n"
            temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    return entry


def relative(now: Measurement, entry: Entry, alpha: float) -> Measurement:
    """How many times as long the sparse half takes as the stored speed-ups let expect.

    The interval is where a check of the same model lies but for a share `alpha` of all times: a prediction interval
    on the logarithm, Student's t over the stored checks (Hahn and Meeker 1991, section 4.3), widened by the new
    check's own, which may be less precise than they were. Beside a single stored check it is endless.
    """
    logs = [math.log(one.speedup.value) for one in entry.checks]
    value = math.exp(sum(logs) / len(logs)) / now.value
    half = math.hypot(entry.half_width(alpha), math.log(now.high / now.low) / 2 if now.low > 0 else math.inf)
    if half > _ENDLESS:
        return replace(now, value=value, low=0.0, high=math.inf)
    return replace(now, value=value, low=value / math.exp(half), high=value * math.exp(half))


def notes(entry: Entry) -> list[str]:
    """What a reader has to know of the stored checks."""
    if entry.spread is None:
        return [
            "One stored check tells nothing of how far the ratio moves from check to check, so nothing can be decided "
            f"by it. Store more of the same bundle, at different times: {FEW} at least."
        ]
    width = math.expm1(entry.half_width(ALPHA))
    few = f" More than {FEW} make it narrower." if len(entry.checks) <= FEW else ""
    return [
        f"The {len(entry.checks)} stored checks, of {entry.hours:.1f} hours, differ by {100 * entry.spread:.1f} % "
        f"(standard deviation): a new one is uncertain by {100 * width:.1f} % at least.{few}"
    ]


def fate(path: Path, there: Baseline | None, entry: Entry | None) -> list[str]:
    """What becomes of a check that was to be stored; no entry where it did not pass."""
    if entry is None:
        return [f"Nothing was stored in {path}: the check did not pass."]
    old = there.find(entry.machine) if there else None
    after = entry.joined(there)
    told = [f"Stored in {path}, which holds {len(after.checks)} of this model on such machines."]
    if old and len(after.checks) == 1:
        told.append(f"It takes the place of {len(old.checks)} stored for another model or runtime.")
    return told + notes(after)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other program is in here for this folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which lets go
