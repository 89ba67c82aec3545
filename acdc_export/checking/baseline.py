"""Stored ratios, for where the old bundle can't run: keyed to a class of machines, and refused by every other.

A ratio outlives the milliseconds that it was made of, but not the machine: another instruction set or number of cores
changes the two halves by different factors. A baseline is thus a list of entries, one for each class of machines.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..bundle import Manifest
from ..errors import BaselineError, UnlikeMachine
from ..evidence.gates import Measurement
from ..files import output_errors, read_record

SCHEMA_VERSION = 1

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
class Entry:
    """What was measured on one class of machines."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    machine: MachineClass
    created: str
    runtime: str
    version: str
    speedup: Measurement  # the twin's median latency over the sparse half's
    zeros: int | None
    total: int | None


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
    numbers = [(entry.speedup.low, entry.speedup.value, entry.speedup.high) for entry in found.entries]
    if not all(0 < low <= value <= high < math.inf for low, value, high in numbers):
        raise BaselineError(f"{path} holds a speed-up that is none.", anew)
    return found


def save(path: Path, manifest: Manifest, entry: Entry) -> None:
    """Write the entry into a baseline, in place of the one of its class of machines; the others stay.

    Raises:
        BaselineError: the file that is there is another's.
        OutputError: it can't be written; the one that is there stays.
    """
    entries: tuple[Entry, ...] = ()
    if path.exists():
        entries = tuple(old for old in read(path, manifest).entries if old.machine != entry.machine)
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


def relative(now: Measurement, stored: Measurement) -> Measurement:
    """How many times as long the sparse half takes as the stored speed-up lets expect, with both intervals in it.

    Both are of speed-ups, on the logarithm independent and symmetric: their half-widths add as squares.
    """
    value = stored.value / now.value
    halves = [math.log(one.high / one.low) / 2 if one.low > 0 else math.inf for one in (now, stored)]
    spread = math.exp(math.hypot(*halves))
    return replace(now, value=value, low=value / spread, high=value * spread)
