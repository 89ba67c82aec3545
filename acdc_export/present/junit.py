"""A check as JUnit XML: what CI systems show as tests, one for each gate."""

from __future__ import annotations

from xml.etree import ElementTree

from ..printable import printable
from ..records.check import Check
from .check import document

_KINDS = {"fail": "failure", "inconclusive": "error", "not measured": "error"}


def junit(check: Check) -> str:
    """One test case for each gate. What is inconclusive or not measured is an error there: nothing else is red
    without being called a failure, and "skipped" would be green."""
    cases = [_KINDS.get(gate.status) for gate in check.gates]
    totals = {"tests": len(cases), "failures": cases.count("failure"), "errors": cases.count("error")}
    counts = {name: str(total) for name, total in totals.items()}
    root = ElementTree.Element("testsuites", counts)
    about = {"name": f"acdc-export check {check.new.path}", "time": f"{check.seconds:.1f}", "timestamp": check.created}
    suite = _element(root, "testsuite", **about, **counts, skipped="0")
    said = [document(check).headline, *(cause.text for cause in check.causes), *check.notes]
    for gate, kind in zip(check.gates, cases, strict=True):
        # The time is of all gates together: each alone takes none of its own.
        case = _element(suite, "testcase", classname="acdc-export.check", name=gate.gate, time="0")
        if kind:
            problem = _element(case, kind, type=gate.status, message=f"{gate.status}: {gate.detail}")
            problem.text = "\n".join(printable(line) for line in said)
        else:
            _element(case, "system-out").text = printable(gate.detail)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content.decode() + "\n"


def _element(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    """A child element. Characters that XML forbids are not printable, so they are gone."""
    return ElementTree.SubElement(parent, tag, {name: printable(text) for name, text in attributes.items()})
