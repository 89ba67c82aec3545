"""Stored ratios: keyed to machines, refused for whatever they are not of."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc_export.bundle import Manifest, ModelFile
from acdc_export.checking import baseline
from acdc_export.checking.baseline import KEPT, Entry, MachineClass, Stored
from acdc_export.errors import BaselineError, OutputError, UnlikeMachine
from acdc_export.evidence.gates import Measurement

HERE = MachineClass("A processor", "avx2", 2)
ONE = Stored("2026-01-01T00:00:00+00:00", Measurement(3.0, 2.9, 3.1))
ENTRY = Entry(HERE, "deepsparse", "1.8.0", "1" * 64, 900, 1000, (ONE,))
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


def entry(*speedups: float, width: float = 1.001) -> Entry:
    """Checks that found these, each with an interval that narrow."""
    found = [Measurement(value, value / width, value * width) for value in speedups]
    return replace(ENTRY, checks=tuple(replace(ONE, speedup=one) for one in found))


def test_a_class_of_machines_keeps_one_entry_and_leaves_the_others(path: Path) -> None:
    other = replace(ENTRY, machine=replace(HERE, cores=4))
    newer = replace(ENTRY, model_sha256="2" * 64)
    assert baseline.save(path, MANIFEST, other) == other
    assert baseline.save(path, MANIFEST, newer) == newer
    found = baseline.read(path, MANIFEST)
    assert found.of(HERE) == newer
    assert found.of(other.machine) == other
    with pytest.raises(UnlikeMachine, match="A processor, avx512, 2 cores") as caught:
        found.of(replace(HERE, instruction_set="avx512"))
    assert caught.value.exit_code == 3
    assert [left.name for left in path.parent.iterdir()] == ["cpu.json"]


def test_checks_of_the_same_model_are_kept_beside_each_other(path: Path) -> None:
    later = replace(entry(3.3), machine=HERE)
    assert baseline.save(path, MANIFEST, later).checks == (ONE, *later.checks)
    assert baseline.read(path, MANIFEST).of(HERE).checks == (ONE, *later.checks)
    for _ in range(2 * KEPT):
        baseline.save(path, MANIFEST, later)
    assert baseline.read(path, MANIFEST).of(HERE).checks == KEPT * later.checks


@pytest.mark.parametrize(
    "change", [{"model_sha256": "2" * 64}, {"version": "1.9.0"}, {"runtime": "other"}, {"zeros": 800}]
)
def test_those_of_another_model_or_runtime_are_not(path: Path, change: dict[str, Any]) -> None:
    other = replace(entry(3.3), **change)
    assert baseline.save(path, MANIFEST, other) == other


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
    document["entries"][0]["checks"][0]["speedup"] = dict(zip(("value", "low", "high"), speedup, strict=True))
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


def test_an_entry_without_a_check(path: Path) -> None:
    document = json.loads(path.read_text())
    document["entries"][0]["checks"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(BaselineError, match="an entry without a check"):
        baseline.read(path, MANIFEST)


NOW = Measurement(3.0, 2.99, 3.01)


def test_the_interval_is_as_wide_as_the_stored_checks_lie_apart() -> None:
    found = baseline.relative(NOW, entry(3.3, 3.0, 3.6), 0.05)
    logs = [math.log(value) for value in (3.3, 3.0, 3.6)]
    assert math.log(found.value * NOW.value) == pytest.approx(sum(logs) / 3)
    # t(2) = 4.303, and by hand the standard deviation of the logarithms is 0.0912
    assert math.log(found.high / found.value) == pytest.approx(4.303 * 0.0912 * math.sqrt(4 / 3), rel=1e-3)
    assert found.low * found.high == pytest.approx(found.value**2)


def test_it_is_wider_where_the_new_check_is_vague() -> None:
    now = Measurement(3.0, 3.0 / 1.03, 3.0 * 1.03)
    stored = entry(3.3, 3.0, 3.6)
    found = baseline.relative(now, stored, 0.05)
    wanted = math.hypot(math.log(1.03), stored.half_width(0.05))
    assert math.log(found.high / found.value) == pytest.approx(wanted)


@pytest.mark.parametrize("noise", [0.0, 0.04, 0.1])
def test_a_prediction_holds_at_least_as_often_as_it_says(noise: float) -> None:
    """Checks that differ by 4 %; five precise ones are stored, and a sixth is itself uncertain."""
    random, wide = np.random.default_rng(0), math.exp(1.96 * noise)
    logs = math.log(3) + random.normal(0, 0.04, (2000, 6))
    logs[:, 5] += random.normal(0, noise, 2000) if noise else 0
    found = [
        baseline.relative(Measurement(last, last / wide, last * wide), entry(*stored), 0.05)
        for *stored, last in np.exp(logs)
    ]
    assert 0.94 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.985


@pytest.mark.parametrize(
    ("now", "stored"), [(NOW, entry(3.0)), (Measurement(3.0, 0.0, math.inf), entry(3.0, 3.1, 3.2))]
)
def test_beside_a_single_check_nothing_is_certain(now: Measurement, stored: Entry) -> None:
    found = baseline.relative(now, stored, 0.05)
    assert (found.low, found.high) == (0.0, math.inf)


def test_a_reader_is_told_how_far_checks_lie_apart() -> None:
    assert "Store more of the same bundle, at different times" in baseline.notes(entry(3.0))[0]
    three = entry(3.0, 3.3, 3.0)
    last = replace(three.checks[2], created="2026-01-01T01:30:00+00:00")
    assert baseline.notes(replace(three, checks=(*three.checks[:2], last))) == [
        "The 3 stored checks, of 1.5 hours, differ by 5.5 % (standard deviation): a new one is uncertain by 31.4 % at "
        "least. More than 6 make it narrower."
    ]
    assert "More than" not in baseline.notes(entry(*[3.0] * 7))[0]


def test_what_becomes_of_a_check_is_told(path: Path) -> None:
    there = baseline.existing(path, MANIFEST)
    assert "which holds 2 of this model" in baseline.fate(path, there, entry(3.1))[0]
    told = baseline.fate(path, there, replace(entry(3.1), model_sha256="2" * 64))
    assert "which holds 1 of this model" in told[0]
    assert told[1] == "It takes the place of 1 stored for another model or runtime."
    assert baseline.fate(path, there, None) == [f"Nothing was stored in {path}: the check did not pass."]
    assert baseline.existing(path.with_name("new.json"), MANIFEST) is None


def test_two_that_save_at_once_lose_nothing(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: baseline.save(path, MANIFEST, entry(3.0 + at / 100)), range(16)))
    assert len(baseline.read(path, MANIFEST).of(HERE).checks) == 17


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        baseline.existing(tmp_path, MANIFEST)
