"""The pytest plugin: green is what passed, and nothing else; and it costs those who don't use it nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from acdc_export import pytest_plugin, workflow
from acdc_export.checking import Check
from acdc_export.errors import BundleError
from acdc_export.evidence.gates import Status
from acdc_export.options import CheckOptions

from .checking.examples import BUNDLE_FACTS, example

pytest_plugins = "pytester"

STATUSES: dict[str, Status] = {"good": "pass", "slow": "fail", "near": "inconclusive", "untold": "not measured"}
STRICT = ("-W", "error", "--strict-markers", "--strict-config")
UNUSED = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")  # the first would be imported anew by every run


def made(new: str, old: str) -> Check:
    """A check as `workflow.check` might return it, of a bundle whose name says what comes of it."""
    return example(STATUSES[Path(new).name], new=replace(BUNDLE_FACTS, path=new), old=replace(BUNDLE_FACTS, path=old))


def fake(new: str, **options: Any) -> Check:
    """In place of `workflow.check`: notes what it would check with, and when, and measures nothing."""
    asked = CheckOptions(**options)
    if Path(new).name == "missing":
        raise BundleError(f"There is no bundle at {new}.", "Look where it was written to.")
    began = time.monotonic()
    time.sleep(options.get("budget", 0))
    times = (began, time.monotonic())
    named = {name: getattr(asked, name) for name in options}
    with Path("calls").open("a") as file:
        file.write(json.dumps({"options": named, "times": times}, default=str) + "\n")
    return made(new, options.get("against", "bundles/old"))


def calls() -> list[dict[str, Any]]:
    """The options that `fake` was called with, without the folder that every check gets."""
    found = [json.loads(line)["options"] for line in Path("calls").read_text().splitlines()]
    return [{name: value for name, value in options.items() if name != "out"} for options in found]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a test module under pytest, in this process and as strictly as this suite is run."""
    # This suite may itself be run by a worker, or by CI, where pytest's summary repeats failures in full; the runs in
    # here are not.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")  # of pytest's own lines; a report is as wide as it is
    pytester.makeconftest(
        """
        import pytest
        from tests.test_pytest_plugin import fake

        @pytest.fixture(autouse=True)
        def faked(monkeypatch):
            monkeypatch.setattr("acdc_export.workflow.check", fake)
        """
    )

    def run(source: str, *arguments: str, how: str = "inprocess") -> pytest.RunResult:
        pytester.makepyfile(f"import pytest\n{inspect.cleandoc(source)}")
        return getattr(pytester, f"runpytest_{how}")(*STRICT, *UNUSED, *arguments)

    return run


def red(result: pytest.RunResult, *lines: str, outcome: str = "failed") -> str:
    """Ensure that the one test was red and said these lines, without a traceback; what pytest printed."""
    result.assert_outcomes(**{outcome: 1})
    shown = result.stdout.str()
    for line in lines:
        assert line in shown
    assert "Traceback" not in shown
    assert "another exception" not in shown
    assert "pytest_plugin.py" not in shown
    assert "Error" not in shown
    return shown


def test_a_check_that_passed_is_returned(run: Any) -> None:
    result = run(
        """
        from pathlib import Path

        def test_speed(acdc_check):
            found = acdc_check("bundles/good", against="bundles/old", gates=["size <= 12MB"], accept_licenses=["a"])
            assert found.passed
            assert found.new.path == "bundles/good"
        """
    )
    result.assert_outcomes(passed=1)
    assert calls() == [{"against": "bundles/old", "gates": ["size <= 12MB"], "accept_licenses": ["a"]}]


@pytest.mark.parametrize("name", ["slow", "near", "untold"])
def test_whatever_is_not_a_pass_is_red_with_the_report(run: Any, name: str) -> None:
    result = run(
        f"""
        def test_speed(acdc_check):
            try:
                acdc_check("bundles/{name}", against="bundles/old")
            except Exception:
                pass  # what users write around it makes nothing green
        """
    )
    status = STATUSES[name]
    shown = red(
        result,
        f"bundles/{name} against bundles/old: {status.upper()}",
        f"gate 0  {status}",
        "The bundles",
        "Written to ",
    )
    assert f"::test_speed - Failed: bundles/{name} against bundles/old: {status.upper()}" in shown
    assert "pytest-xdist" not in shown


def test_a_mistake_is_two_lines(run: Any) -> None:
    result = run("def test_speed(acdc_check): acdc_check('bundles/missing', against='bundles/old')")
    red(result, "There is no bundle at bundles/missing.\nLook where it was written to.")


def test_an_unknown_option_names_the_nearest(run: Any) -> None:
    result = run("def test_speed(acdc_check): acdc_check('bundles/good', agianst='bundles/old')")
    red(result, "acdc_check has no option 'agianst' (did you mean 'against'?).\nIts options are against,")


def test_an_unknown_option_of_the_marker_names_the_nearest(run: Any) -> None:
    result = run(
        """
        @pytest.mark.acdc(gate=["size <= 1MB"])
        def test_speed(acdc_check):
            acdc_check("bundles/good", against="bundles/old")
        """
    )
    red(result, "@pytest.mark.acdc has no option 'gate' (did you mean 'gates'?).\nIts options", outcome="errors")


def test_the_marker_takes_options_by_name_only(run: Any) -> None:
    result = run("@pytest.mark.acdc('bundles/old')\ndef test_speed(acdc_check): acdc_check('bundles/good')")
    red(result, "@pytest.mark.acdc takes no 'bundles/old' without the name of an option.", outcome="errors")


def test_a_marked_test_that_checks_nothing_is_red(run: Any) -> None:
    result = run("@pytest.mark.acdc(against='bundles/old')\ndef test_speed(): pass")
    red(result, "marked with @pytest.mark.acdc, and checks nothing.\nThe marker only holds", outcome="errors")


def test_the_options_of_markers_and_calls_are_merged(run: Any) -> None:
    result = run(
        """
        pytestmark = pytest.mark.acdc(against="bundles/old", accept_licenses="deepsparse")

        @pytest.mark.acdc(gates=["size <= 1MB"], threads=1)
        class TestSpeed:
            @pytest.mark.acdc(threads=2)
            def test_nearest(self, acdc_check):
                acdc_check("bundles/good")
                acdc_check("bundles/good", threads=3, gates="size <= 2MB")
                acdc_check("bundles/good", self_test=True)

            def test_without(self):
                pass

        def test_own(acdc_check):
            acdc_check("bundles/good", against="bundles/older")
        """
    )
    result.assert_outcomes(passed=3)
    licenses, sizes = {"accept_licenses": ["deepsparse"]}, ["size <= 1MB"]
    assert calls() == [
        {"against": "bundles/old", "gates": sizes, "threads": 2, **licenses},
        {"against": "bundles/old", "gates": ["size <= 2MB"], "threads": 3, **licenses},
        {"self_test": True, "gates": sizes, "threads": 2, **licenses},  # a check is against one thing
        {"against": "bundles/older", **licenses},
    ]


def test_what_is_written_has_a_folder_of_its_own(run: Any) -> None:
    result = run(
        """
        def test_speed(acdc_check, tmp_path):
            for out in ({}, {}, {"out": "checks"}):
                acdc_check("bundles/good", against="bundles/old", **out)
            assert not list(tmp_path.iterdir())
        """
    )
    result.assert_outcomes(passed=1)
    one, two, given = (json.loads(line)["options"]["out"] for line in Path("calls").read_text().splitlines())
    assert given == "checks"
    assert one != two
    assert "pytest-of-" in one


def test_the_summary_lists_every_check(run: Any) -> None:
    result = run(
        """
        @pytest.fixture
        def checked(acdc_check):
            return acdc_check("bundles/good", against="bundles/oldest")

        def test_both(checked, acdc_check):
            acdc_check("bundles/good", against="bundles/old")
            acdc_check("bundles/near", against="bundles/old")

        def test_neither():
            pass
        """
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*= acdc-export checks =*",
            "bundles/good against bundles/oldest: PASS",
            "bundles/good against bundles/old: PASS",
            "bundles/near against bundles/old: INCONCLUSIVE",
            "*= short test summary info =*",
            "FAILED *::test_both - *bundles/near against bundles/old: INCONCLUSIVE*",
        ]
    )
    assert result.stdout.str().count("bundles/oldest: PASS") == 1


def test_junit_xml_holds_the_verdicts(run: Any) -> None:
    run("def test_speed(acdc_check): acdc_check('bundles/near', against='bundles/old')", "--junitxml=found.xml")
    (case,) = ElementTree.parse("found.xml").iter("testcase")
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    assert properties["acdc_export.verdict"] == "inconclusive"
    assert properties["acdc_export.check"] == "bundles/near against bundles/old: INCONCLUSIVE"
    assert properties["acdc_export.latency.p50.ratio"] == "1.05"
    assert properties["acdc_export.latency.p50.ratio.high"] == "1.06"


def test_workers_of_xdist_check_one_after_the_other(run: Any, pytester: pytest.Pytester) -> None:
    source = """
        @pytest.mark.parametrize("name", ["good", "near"])
        def test_speed(acdc_check, name):
            acdc_check(f"bundles/{name}", against="bundles/old", budget=0.5)
        """
    result = run(source, "-n2", "--dist=load", how="subprocess")
    result.assert_outcomes(passed=1, failed=1)
    first, second = sorted(json.loads(line)["times"] for line in Path("calls").read_text().splitlines())
    assert first[1] <= second[0]
    shown = result.stdout.str()
    assert "bundles/good against bundles/old: PASS" in shown
    report, _, summary = shown.partition("acdc-export checks")
    for part in (report, summary):
        assert part.count("Note: pytest-xdist runs other tests beside the checks") == 1


def test_a_single_worker_disturbs_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "1")
    result = run("def test_speed(acdc_check): acdc_check('bundles/good', against='bundles/old')")
    result.assert_outcomes(passed=1)
    assert "Note:" not in result.stdout.str()


def test_a_marked_test_that_never_checks_is_red(run: Any) -> None:
    source = """
        @pytest.mark.acdc(against="bundles/old")
        def test_speed(acdc_check):
            if False:
                acdc_check("bundles/good")
        """
    red(run(source), "acdc_check was not called")
    skipped = run(source.replace("if False:", "pytest.skip('no bundle')\n            if False:"))
    skipped.assert_outcomes(skipped=1)


def test_collecting_checks_nothing(run: Any) -> None:
    result = run("def test_speed(acdc_check): acdc_check('bundles/slow')", "--collect-only", "-q")
    assert result.ret == 0
    assert not Path("calls").exists()
    assert "acdc-export checks" not in result.stdout.str()


def test_it_can_be_left_out(run: Any) -> None:
    result = run("def test_other(): pass", "-p", "no:acdc_export", "--fixtures-per-test", "-v")
    assert result.ret == 0
    result = run("def test_speed(acdc_check): pass", "-p", "no:acdc_export")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'acdc_check' not found*"])


def test_the_example_of_the_docs(run: Any) -> None:
    source = (Path(pytest_plugin.__file__).parents[1] / "examples" / "ci" / "test_latency.py").read_text()
    result = run(source.replace("bundles/new", "bundles/good"))
    result.assert_outcomes(passed=1)
    assert calls() == [{"against": "bundles/old"}]


def test_its_options_are_those_of_a_check(run: Any) -> None:
    names = ", ".join(list(inspect.signature(workflow.check).parameters)[1:])
    result = run("def test_speed(acdc_check): acdc_check('bundles/good', nonsense=True)")
    red(result, f"Its options are {names}; the new bundle is named in the call.")


def test_loading_it_is_cheap() -> None:
    program = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport acdc_export.pytest_plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["acdc_export", "acdc_export.pytest_plugin", "acdc_export.version"]


def test_a_run_without_checks_loads_nothing_more(run: Any) -> None:
    result = run(
        """
        import sys

        def test_modules():
            assert not {"numpy", "pydantic", "torch", "acdc_export.workflow"} & set(sys.modules)
        """,
        "--noconftest",
        how="subprocess",
    )
    result.assert_outcomes(passed=1)
