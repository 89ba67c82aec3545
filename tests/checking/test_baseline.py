"""Stored ratios: keyed to machines, refused for whatever they are not of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acdc_export.bundle import Manifest, ModelFile
from acdc_export.checking import baseline
from acdc_export.checking.baseline import Entry, MachineClass
from acdc_export.errors import BaselineError, OutputError, UnlikeMachine
from acdc_export.evidence.gates import Measurement

HERE = MachineClass("A processor", "avx2", 2)
ENTRY = Entry(HERE, "2026-01-01T00:00:00+00:00", "deepsparse", "1.8.0", Measurement(3.0, 2.9, 3.1), 900, 1000)
MANIFEST = Manifest(
    name="tiny",
    target="cpu",
    target_sha256="0" * 64,
    runtime="deepsparse",
    precision="fp32",
    models=(ModelFile("model-b16.onnx", 16),),
    inputs=(),
    outputs=(),
    batch_sizes=(16,),
    gated_batch_size=16,
    tolerance=1e-3,
    supported_ops=1.0,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "ci" / "cpu.json"
    baseline.save(found, MANIFEST, ENTRY)
    return found


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_class_of_machines_keeps_one_entry_and_leaves_the_others(path: Path) -> None:
    other = replace(ENTRY, machine=replace(HERE, cores=4))
    newer = replace(ENTRY, speedup=Measurement(4.0, 3.9, 4.1))
    baseline.save(path, MANIFEST, other)
    baseline.save(path, MANIFEST, newer)
    found = baseline.read(path, MANIFEST)
    assert found.of(HERE) == newer
    assert found.of(other.machine) == other
    with pytest.raises(UnlikeMachine, match="A processor, avx512, 2 cores") as caught:
        found.of(replace(HERE, instruction_set="avx512"))
    assert caught.value.exit_code == 3
    assert [left.name for left in path.parent.iterdir()] == ["cpu.json"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "large"}, "is of the model large"),
        ({"target": "gpu"}, "is of the target gpu"),
        ({"precision": "int8"}, "is of the precision int8"),
        ({"gated_batch_size": 1}, "is of the batch size"),
    ],
)
def test_of_something_else(path: Path, changes: dict[str, Any], said: str) -> None:
    if "gated_batch_size" in changes:
        manifest = replace(MANIFEST, gated_batch_size=1)
    else:
        manifest = MANIFEST
        change(path, **changes)
    before = path.read_bytes()
    with pytest.raises(BaselineError, match=said):
        baseline.read(path, manifest)
    with pytest.raises(BaselineError, match=said):  # nor is it overwritten
        baseline.save(path, manifest, ENTRY)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 0}', '{"schema_version": 1}', "\x00"])
def test_damaged(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(BaselineError, match="cpu.json") as caught:
        baseline.read(path, MANIFEST)
    assert "--save" in caught.value.remedy


def test_of_a_newer_schema(path: Path) -> None:
    change(path, schema_version=2)
    with pytest.raises(BaselineError, match="schema version 2") as caught:
        baseline.read(path, MANIFEST)
    assert caught.value.remedy == "Update acdc-export."


@pytest.mark.parametrize("speedup", [(0.0, 0.0, 0.0), (3.0, 4.0, 5.0), (-1.0, -2.0, 1.0), (3.0, 2.0, "inf")])
def test_a_speedup_that_is_none(path: Path, speedup: tuple[Any, Any, Any]) -> None:
    document = json.loads(path.read_text())
    document["entries"][0]["speedup"] = dict(zip(("value", "low", "high"), speedup, strict=True))
    path.write_text(json.dumps(document))
    with pytest.raises(BaselineError, match="speed"):
        baseline.read(path, MANIFEST)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="There is no baseline") as caught:
        baseline.read(tmp_path / "cpu.json", MANIFEST)
    assert caught.value.exit_code == 2


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        baseline.save(tmp_path / "file" / "cpu.json", MANIFEST, ENTRY)


def test_the_intervals_of_both_add_up() -> None:
    now, stored = Measurement(3.0, 3.0 / 1.03, 3.0 * 1.03), Measurement(3.3, 3.3 / 1.04, 3.3 * 1.04)
    found = baseline.relative(now, stored)
    assert found.value == pytest.approx(1.1)
    assert math.log(found.high / found.value) == pytest.approx(math.hypot(math.log(1.03), math.log(1.04)))
    assert found.low < found.value < found.high


def test_an_endless_interval_stays_endless() -> None:
    found = baseline.relative(Measurement(3.0, 0.0, math.inf), ENTRY.speedup)
    assert (found.low, found.high) == (0.0, math.inf)
