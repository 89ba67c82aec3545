"""What a check leaves: a folder, and a line of history."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from acdc_export import checking
from acdc_export.errors import OutputError
from acdc_export.evidence.gates import Status

from .examples import example

ALL: tuple[Status, ...] = ("pass", "fail", "inconclusive", "not measured")


def test_the_folder_of_a_check(tmp_path: Path) -> None:
    path = tmp_path / "checks" / "tiny-cpu"
    raw = {"": {"old.0": np.arange(3), "new.0": np.arange(3)}, "twin.": {"old.0": np.arange(2)}}
    checking.write(path, example("pass"), raw)
    assert sorted(file.name for file in path.iterdir()) == ["check.json", "junit.xml", "report.md", "samples.npz"]
    document = json.loads((path / "check.json").read_text())
    assert document["verdict"] == "pass"
    assert document["new"]["locked"]["numpy"] == "1.26.4"
    with np.load(path / "samples.npz") as samples:
        assert set(samples) == {"old.0", "new.0", "twin.old.0"}
    checking.write(path, example("fail"), raw)
    assert json.loads((path / "check.json").read_text())["exit_code"] == 1


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a folder of ours"):
        checking.check_place(tmp_path)
    with pytest.raises(OutputError, match="not a folder of ours"):
        checking.write(tmp_path, example(), {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("statuses", "code"), [(ALL, 1), (("pass",), 0), (("inconclusive",), 4)])
def test_exit_codes(statuses: tuple[Status, ...], code: int) -> None:
    assert example(*statuses).exit_code == code


def test_history_is_a_line_a_check(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "history.jsonl"
    for status in ("pass", "fail"):
        checking.append_history(path, example(status))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["verdict"], second["verdict"]) == ("pass", "fail")
    assert first["measured"]["latency.p50.ratio"]["value"] == 1.05
    assert first["new"]["runtime"] == "deepsparse"
    assert first["p50"] == {"old": 1.0, "new": 1.0}
