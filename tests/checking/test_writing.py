"""What a check leaves: JSON, Markdown, JUnit XML, a line of history."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from acdc_export import checking
from acdc_export.errors import OutputError
from acdc_export.evidence.gates import Measurement, Status
from acdc_export.present.junit import junit
from acdc_export.records.check import Cause

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


def test_junit_has_a_test_for_each_gate_and_nothing_green_but_a_pass() -> None:
    root = ElementTree.fromstring(junit(example(*ALL, causes=(Cause("model", "It is denser <&>."),))))
    (suite,) = root.findall("testsuite")
    assert suite.attrib["tests"] == "4"
    assert (suite.attrib["failures"], suite.attrib["errors"], suite.attrib["skipped"]) == ("1", "2", "0")
    outcomes = [[child.tag for child in case] for case in suite.findall("testcase")]
    assert outcomes == [["system-out"], ["failure"], ["error"], ["error"]]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "It is denser <&>." in (failure.text or "")


def test_history_is_a_line_a_check(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "history.jsonl"
    for status in ("pass", "fail"):
        checking.append_history(path, example(status))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["verdict"], second["verdict"]) == ("pass", "fail")
    assert first["measured"]["latency.p50.ratio"]["value"] == 1.05
    assert first["new"]["runtime"] == "deepsparse"
    assert first["p50"] == {"old": 1.0, "new": 1.0}


def test_all_that_people_read_says_the_verdict_and_why() -> None:
    found = example("fail", causes=(Cause("model", "It is denser."),))
    for text in (str(found), checking.markdown(found)):
        assert "bundles/tiny-cpu against bundles/older: FAIL" in text
        assert "1.050 [1.040, 1.060] times as long as the old one" in text
        assert "Model: It is denser." in text
        assert "Note: Something was unsteady." in text
    assert "| ✗ gate 0 | fail | shown |" in checking.markdown(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "self-test"}, "against itself"),
        ({"kind": "baseline", "baseline": "ci/cpu.json", "old": None, "twins": None}, "as its stored speed-up has it"),
        ({"kind": "save", "baseline": "ci/cpu.json", "old": None, "twins": None,
          "measured": {"speedup": Measurement(3.0, 2.9, 3.1)}}, "the dense twin takes 3.000 [2.900, 3.100]"),
    ],
)  # fmt: skip
def test_every_kind_of_check_can_be_read(changes: dict[str, object], said: str) -> None:
    assert said in " ".join(str(example(**changes)).split())
