"""A check as JUnit XML: what CI systems show as tests, one for each gate."""

from __future__ import annotations

from xml.etree import ElementTree

from ..records.check import Check
from .check import headline


def junit(check: Check) -> str:
    """One test case for each gate. What is inconclusive or not measured is an error there: nothing else is red
    without being called a failure, and "skipped" would be green."""
    kinds = {"fail": "failure", "inconclusive": "error", "not measured": "error"}
    cases = [kinds.get(gate.status) for gate in check.gates]
    totals = {"tests": len(cases), "failures": cases.count("failure"), "errors": cases.count("error")}
    counts = {name: str(count) for name, count in totals.items()}
    root = ElementTree.Element("testsuites", counts)
    about = {"name": f"acdc-export check {check.new.path}", "time": f"{check.seconds:.1f}", "timestamp": check.created}
    suite = ElementTree.SubElement(root, "testsuite", {**about, **counts, "skipped": "0"})
    for gate, kind in zip(check.gates, cases, strict=True):
        # The time is of all gates together: each alone takes none of its own.
        case = ElementTree.SubElement(suite, "testcase", classname="acdc-export.check", name=gate.gate, time="0")
        if kind:
            problem = ElementTree.SubElement(case, kind, type=gate.status, message=f"{gate.status}: {gate.detail}")
            problem.text = "\n".join([headline(check), *(cause.text for cause in check.causes), *check.notes])
        else:
            ElementTree.SubElement(case, "system-out").text = gate.detail
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
