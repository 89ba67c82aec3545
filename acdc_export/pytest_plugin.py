"""For pytest: the fixture `acdc_check`, by which a test is red unless a bundle held its own against an older one.

    @pytest.mark.acdc(against="bundles/old")
    def test_no_slower(acdc_check):
        acdc_check("bundles/new")

Every pytest run of everyone who has this package loads this module. So it imports nothing but pytest until a test
checks something, and adds no option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from . import workflow
    from .checking import Check

_CHECKED = pytest.StashKey[bool]()

_DISTURBED = (
    "pytest-xdist runs other tests beside the checks, which disturbs them; "
    "run the checks by themselves, as in `pytest -n0 -m acdc`."
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, for --strict-markers and --markers."""
    text = "acdc(against='bundles/old', gates=[...], budget=60, ...): what acdc_check uses unless it is told otherwise."
    config.addinivalue_line("markers", text)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test that can't check anything would be green with nothing measured."""
    if _marked_itself(item) and "acdc_check" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            "This test is marked with @pytest.mark.acdc, and checks nothing.\n"
            "The marker only holds options: take the fixture acdc_check as an argument, and call it with a bundle.",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A marked test that took another path, and called nothing, would be green too."""
    yield
    if _marked_itself(item) and not item.stash.get(_CHECKED, False):
        pytest.fail(
            "This test is marked with @pytest.mark.acdc, and checked nothing: acdc_check was not called.\n"
            "Call it on every path, or skip the test where there is nothing to check (pytest.skip).",
            pytrace=False,
        )


class AcdcCheck:
    """The type of the fixture `acdc_check`: a function with the options of `acdc_export.check`."""

    def __init__(self, check: Callable[[str | Path, dict[str, Any]], Check]) -> None:
        self._check = check

    if TYPE_CHECKING:
        __call__ = staticmethod(workflow.check)
    else:

        def __call__(self, new, **options):
            return self._check(new, options)


@pytest.fixture
def acdc_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AcdcCheck:
    """Hold a bundle against an older one: acdc_check("bundles/new", against="bundles/old").

    It takes the options of `acdc_export.check`, with those of `@pytest.mark.acdc(...)` as defaults, and
    returns its `Check` if every gate passed. Whatever else comes of it fails the test with the whole report: a gate
    that failed, was inconclusive or could not be measured, and a mistake. Paths are relative to the working directory.

    For editors and type checkers: `from acdc_export.pytest_plugin import AcdcCheck`, and `acdc_check: AcdcCheck`.

    What it writes goes into one of pytest's temporary folders, unless `out` is given. It takes `budget` seconds (60)
    and some for loading; under pytest-xdist it also waits for the checks of other workers. Leave room for that with
    pytest-timeout.
    """
    defaults = _or_fail(_marked, request.node)

    def check(new: str | Path, options: dict[str, Any]) -> Check:
        request.node.stash[_CHECKED] = True
        asked = _or_fail(_asked, defaults, options)
        if "out" not in asked:
            asked["out"] = tmp_path_factory.mktemp("acdc_check")
        result: Check = _or_fail(_conduct, new, asked, tmp_path_factory)
        # Not by the fixture record_property: that warns of pytest's default form of JUnit XML, for many an error.
        request.node.user_properties.extend(_properties(result))
        if not result.passed:
            disturbed = f"\n  Note: {_DISTURBED}" if _has_neighbours() else ""
            from . import present

            pytest.fail(f"{present.text(result)}{disturbed}\n  Written to {asked['out']}.", pytrace=False)
        return result

    return AcdcCheck(check)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each check, whatever came of it. Workers of pytest-xdist send them along with their reports."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    # A test's last report holds all of its properties; of one that was run again, the last counts.
    last = {report.nodeid: report for report in reports if getattr(report, "when", None) == "teardown"}
    told = [(name, text) for report in last.values() for name, text in report.user_properties]
    lines = [text for name, text in told if name == "acdc_export.check"]
    notes = {f"Note: {text}": None for name, text in told if name == "acdc_export.note"}  # a set in its order
    if lines:
        terminalreporter.section("acdc-export checks")
        for line in (*lines, *notes):
            terminalreporter.write_line(line)


def _marked_itself(item: pytest.Item) -> bool:
    """Whether the test has a marker of its own: one of a class or module is for those of its tests that check."""
    return any(mark.name == "acdc" for mark in item.own_markers)


def _marked(node: pytest.Item) -> dict[str, Any]:
    """The options in a test's markers; the nearer one counts. Raises `UsageError`."""
    options: dict[str, Any] = {}
    for mark in reversed(list(node.iter_markers("acdc"))):
        if mark.args:
            _refuse(f"@pytest.mark.acdc takes no {mark.args[0]!r} without the name of an option.")
        options = _over(options, _known(mark.kwargs, "@pytest.mark.acdc"))
    return options


def _asked(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one check. Raises `UsageError`."""
    return _over(defaults, _known(options, "acdc_check"))


def _over(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where `options` win. One that says what to check against wins over any other that does."""
    from .options import CheckOptions

    replaced = CheckOptions.KINDS if any(kind in options for kind in CheckOptions.KINDS) else ()
    return {**{name: value for name, value in defaults.items() if name not in replaced}, **options}


def _known(options: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    from .keywords import misspelt
    from .options import CheckOptions

    if message := misspelt(where, options, CheckOptions):
        _refuse(message)
    return options


def _refuse(message: str) -> None:
    from .errors import UsageError
    from .keywords import described
    from .options import CheckOptions

    names = ", ".join(described(CheckOptions))
    raise UsageError(message, f"Its options are {names}; the new bundle is named in the call.")


def _or_fail(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns. A user's mistake, or a runtime that can't run, fails the test in its two lines."""
    from .errors import AcdcExportError

    try:
        return function(*arguments)
    except AcdcExportError as error:
        text = str(error)
    pytest.fail(text, pytrace=False)  # out here, since in there the error would be shown as well


def _conduct(new: str | Path, options: Mapping[str, Any], factory: pytest.TempPathFactory) -> Check:
    """Check; under pytest-xdist, never two at the same time."""
    from . import workflow

    if not _has_neighbours():
        return workflow.check(new, **options)
    import fcntl

    shared = factory.getbasetemp().parent  # of all workers of this run
    with (shared / "acdc-export.lock").open("w") as file:  # closing it lets go, and so does the end of the process
        fcntl.flock(file, fcntl.LOCK_EX)
        return workflow.check(new, **options)


def _has_neighbours() -> bool:
    """Whether this is one of several workers of pytest-xdist."""
    from os import environ

    return "PYTEST_XDIST_WORKER" in environ and environ.get("PYTEST_XDIST_WORKER_COUNT") != "1"


def _properties(check: Check) -> list[tuple[str, object]]:
    """What is kept with the test's report, and so in pytest's JUnit XML: plain strings and numbers."""
    from .present import document
    from .printable import printable

    properties: list[tuple[str, object]] = [
        ("acdc_export.check", printable(document(check).headline)),
        ("acdc_export.verdict", check.verdict),
    ]
    ratio = check.measured.get("latency.p50.ratio")
    if ratio:
        name = "acdc_export.latency.p50.ratio"
        ends = (name, ratio.value), (f"{name}.low", ratio.low), (f"{name}.high", ratio.high)
        properties += [(key, float(value)) for key, value in ends]
    if _has_neighbours():
        properties.append(("acdc_export.note", _DISTURBED))
    return properties
