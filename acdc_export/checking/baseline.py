"""Stored ratios, for where the old bundle can't run. Each belongs to a class of machines; other machines refuse it.

Another instruction set or number of cores changes the two halves by different factors. A baseline is thus a list of
entries, one for every class of machines.

A ratio also moves from hour to hour: what else the machine does slows a sparse half by another factor than its twin.
The interval of a single check knows nothing of that. So an entry holds several checks of the same model, and a new
check is judged by how far these lie apart (a prediction interval). A single stored check decides nothing.
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
"""The most checks that an entry holds. Older ones are dropped: they say less of what the machine does now."""

FEW = 6
"""Up to so many checks, intervals are wide: Student's t has few degrees of freedom."""

_OPTION = "with --save"
_ENDLESS = 300.0  # a half-width on the logarithm from which on the interval is endless


@dataclass(frozen=True)
class MachineClass:
    """What two machines must have in common for a ratio stored on one to hold on the other."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    processor: str
    instruction_set: str | None
    cores: int  # that engines were measured on

    def __str__(self) -> str:
        instruction_set = f", {self.instruction_set}" if self.instruction_set else ""
        return f"{self.processor}{instruction_set}, {self.cores} cores"


@dataclass(frozen=True)
class Stored:
    """What is stored of a check."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    created: str
    speedup: Measurement  # the twin's median latency over the sparse half's


@dataclass(frozen=True)
class Entry:
    """The stored checks of a model on a class of machines."""

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
        """Standard deviation of the speed-ups' logarithms, or None of a single check."""
        logs = [math.log(check.speedup.value) for check in self.checks]
        return statistics.stdev(logs) if len(logs) > 1 else None

    @property
    def hours(self) -> float:
        """Hours from the first check to the last."""
        first, last = (datetime.fromisoformat(check.created) for check in (self.checks[0], self.checks[-1]))
        return abs((last - first).total_seconds()) / 3600

    def half_width(self, alpha: float) -> float:
        """Half the width of the prediction interval for one more check, on the logarithm, at 1 - `alpha`."""
        if self.spread is None:
            return math.inf
        count = len(self.checks)
        return t_quantile(alpha, count - 1) * self.spread * math.sqrt(1 + 1 / count)

    def joined(self, stored: Baseline | None) -> Entry:
        """This entry, with the checks before its own that a baseline holds of the same machines, model and runtime."""
        older = stored.find(self.machine) if stored else None
        if older is None or replace(older, checks=()) != replace(self, checks=()):
            return self
        return replace(self, checks=(*older.checks, *self.checks)[-KEPT:])


@dataclass(frozen=True)
class Baseline:
    """The stored ratios of a model on a target."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    target: str
    precision: str
    batch_size: int
    entries: tuple[Entry, ...]

    def find(self, machine: MachineClass) -> Entry | None:
        """The entry of such machines, if there is one."""
        return next((entry for entry in self.entries if entry.machine == machine), None)

    def of(self, machine: MachineClass) -> Entry:
        """The entry of such machines. Raises `UnlikeMachine` where there is none."""
        if entry := self.find(machine):
            return entry
        known = "; ".join(str(entry.machine) for entry in self.entries) or "no machine at all"
        raise UnlikeMachine(
            f"The baseline of {self.name} holds no ratios of a machine like this one ({machine}), but of: {known}.",
            "Store some on such a machine, with `acdc-export check NEW --save FILE`: a file holds many.",
        )


def read(path: Path, manifest: Manifest) -> Baseline:
    """The baseline in a file, for the bundle with this manifest.

    Raises:
        BaselineError: the file is missing, damaged or of another schema, or holds another model, target, precision
            or batch size.
    """
    remedy = f"Make one with: acdc-export check NEW --save {path}"
    if not path.is_file():
        raise BaselineError(f"There is no baseline at {path}.", remedy)
    stored = read_record(path, Baseline, SCHEMA_VERSION, BaselineError, remedy)
    for name, of_bundle, of_file in (
        ("model", manifest.name, stored.name),
        ("target", manifest.target, stored.target),
        ("precision", manifest.precision, stored.precision),
        ("batch size", manifest.gated_batch_size, stored.batch_size),
    ):
        if of_bundle != of_file:
            raise BaselineError(f"{path} is of the {name} {of_file}; the bundle's is {of_bundle}.", remedy)
    if not all(entry.checks for entry in stored.entries):
        raise BaselineError(f"{path} holds an entry without a check.", remedy)
    speedups = [check.speedup for entry in stored.entries for check in entry.checks]
    if not all(0 < speedup.low <= speedup.value <= speedup.high < math.inf for speedup in speedups):
        raise BaselineError(f"{path} holds a speed-up that is none.", remedy)
    return stored


def existing(path: Path, manifest: Manifest) -> Baseline | None:
    """The baseline that `save` would add to; None where there is no file yet. Call this before measuring.

    Raises:
        BaselineError: as `read` does.
        OutputError: the file can't be written.
    """
    check_file(path, _OPTION)
    return read(path, manifest) if path.exists() else None


def save(path: Path, manifest: Manifest, entry: Entry) -> Entry:
    """Write an entry into a baseline; returns the entry that its class of machines has now.

    The entry joins older checks of the same model and runtime, and replaces those of another. Entries of other classes
    stay. Two programs that save at once wait for each other.

    Raises:
        BaselineError: the existing file is of another model, target, precision or batch size, or can't be read.
        OutputError: the file can't be written; an existing one stays as it was.
    """
    with output_errors(path, _OPTION):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            stored = existing(path, manifest)
            entry = entry.joined(stored)
            others = [other for other in (stored.entries if stored else ()) if other.machine != entry.machine]
            updated = Baseline(
                manifest.name, manifest.target, manifest.precision, manifest.gated_batch_size, (*others, entry)
            )
            text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(updated)}, indent=2, allow_nan=False) + "\n"
            temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    return entry


def relative(now: Measurement, entry: Entry, alpha: float) -> Measurement:
    """How many times as long the sparse half takes as the stored speed-ups let expect.

    Args:
        now: the speed-up of the new check.
        alpha: the share of checks of the same model that may lie outside the interval.

    The interval is a prediction interval on the logarithm: Student's t over the stored checks (Hahn and Meeker 1991,
    section 4.3). It is widened by the new check's own interval, since that check may be less precise. Beside a single
    stored check it is endless.
    """
    logs = [math.log(check.speedup.value) for check in entry.checks]
    value = math.exp(sum(logs) / len(logs)) / now.value
    half = math.hypot(entry.half_width(alpha), math.log(now.high / now.low) / 2 if now.low > 0 else math.inf)
    if half > _ENDLESS:
        return replace(now, value=value, low=0.0, high=math.inf)
    return replace(now, value=value, low=value / math.exp(half), high=value * math.exp(half))


def notes(entry: Entry) -> list[str]:
    """What a reader has to know of the stored checks: how far they lie apart, or that there is only one."""
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


def fate(path: Path, stored: Baseline | None, entry: Entry | None) -> list[str]:
    """Notes on what `save` does with a check, for a reader. There is no entry of a check that did not pass."""
    if entry is None:
        return [f"Nothing was stored in {path}: the check did not pass."]
    old = stored.find(entry.machine) if stored else None
    joined = entry.joined(stored)
    lines = [f"Stored in {path}, which holds {len(joined.checks)} of this model on such machines."]
    if old and len(joined.checks) == 1:
        lines.append(f"It takes the place of {len(old.checks)} stored for another model or runtime.")
    return lines + notes(joined)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; waits while another program holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # this releases the lock
