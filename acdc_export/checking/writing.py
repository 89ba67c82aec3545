"""Writing a check: its folder, and its line in a history of many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .. import present
from ..evidence.latency import Samples
from ..files import check_file, new_folder, output_errors, write_json
from ..files import check_place as check_folder
from ..present.junit import junit
from ..records import to_json
from ..records.check import Check
from .baseline import Entry, Stored
from .steps import machine_class

_MARKER = "check.json"
_HISTORY_OPTION = "with --history"
_HISTORY_KEYS = (
    "created",
    "version",
    "kind",
    "verdict",
    "exit_code",
    "batch_size",
    "machine",
    "measured",
    "gates",
    "causes",
)
_HISTORY_BUNDLE_KEYS = ("path", "name", "created", "runtime", "version")


def check_place(path: Path) -> None:
    """Ensure that `write` may write to `path`, before anything is measured. Raises `OutputError`."""
    check_folder(path, _MARKER)


def write(path: Path, check: Check, samples: dict[str, Samples]) -> None:
    """Write the folder of a check in place of an older one: check.json, samples.npz, report.md, junit.xml.

    Raises:
        OutputError: the folder can't be written; what was there stays.
    """
    raw = {f"{kind}{variant}": times for kind, variants in samples.items() for variant, times in variants.items()}
    with new_folder(path, _MARKER) as folder:
        write_json(folder / _MARKER, to_json(check))
        np.savez_compressed(folder / "samples.npz", **raw)  # type: ignore[arg-type]
        present.write_markdown(folder / "report.md", check, level=2)  # it goes into pages that have a headline
        (folder / "junit.xml").write_text(junit(check), encoding="utf-8")


def check_history(path: Path) -> None:
    """Ensure that a line can be added, before anything is measured. Raises `OutputError`."""
    check_file(path, _HISTORY_OPTION)


def append_history(path: Path, check: Check) -> None:
    """Add a line to a file of JSON lines. Raises `OutputError`."""
    document = to_json(check)
    line = {key: document[key] for key in _HISTORY_KEYS}
    line["p50"] = {name: variant.p50 for name, variant in check.latency.variants.items()}
    for name in ("new", "old"):
        line[name] = document[name] and {key: document[name][key] for key in _HISTORY_BUNDLE_KEYS}
    with output_errors(path, _HISTORY_OPTION):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # one write: lines of two checks at once don't mix
            file.write(json.dumps(line, allow_nan=False) + "\n")


def entry(check: Check) -> Entry | None:
    """The entry that a baseline stores of a check; None where the speed-up was not measured."""
    speedup = check.latency.ratios.get("dense")
    if speedup is None:
        return None
    new = check.new
    return Entry(
        machine=machine_class(check.machine, new),
        runtime=new.runtime,
        version=new.version,
        model_sha256=new.model_sha256,
        zeros=new.zeros,
        total=new.total,
        checks=(Stored(check.created, speedup),),
    )
