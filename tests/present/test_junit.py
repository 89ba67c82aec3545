"""A check as CI systems read it."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from hypothesis import given

from acdc_export.evidence.gates import Status, Verdict
from acdc_export.present.junit import junit
from acdc_export.printable import printable
from acdc_export.records.check import Cause

from ..checking.examples import BUNDLE_FACTS, example
from .hostile import HOSTILE

ALL: tuple[Status, ...] = ("pass", "fail", "inconclusive", "not measured")


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


@given(HOSTILE, HOSTILE)
def test_it_is_well_formed_whatever_the_text(text: str, other: str) -> None:
    """And it holds the text, but for what XML forbids and what a terminal would obey."""
    gates = tuple(Verdict(text, status, other) for status in ALL)
    check = example(gates=gates, causes=(Cause("model", text),), notes=(other,), new=replace(BUNDLE_FACTS, path=text))
    suite = ElementTree.fromstring(junit(check).encode()).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [printable(text)] * 4
    assert cases[1][0].get("message") == f"fail: {printable(other)}"
    assert (cases[1][0].text or "").split("\n")[1:] == [printable(text), printable(other)]
