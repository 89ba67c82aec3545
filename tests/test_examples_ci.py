"""The workflows that users copy: they parse, and every command in them is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import pytest
import typer
import yaml

import acdc_export
from acdc_export.checking import write
from acdc_export.cli import app
from acdc_export.config import load_target
from acdc_export.evidence import gates

from .test_pytest_plugin import made

FOLDER = Path(acdc_export.__file__).parents[1] / "examples" / "ci"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
SHELL = {"|", "||", "&&", ";", ">", ">>"}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `acdc-export` that a step runs, or that a comment names between backticks."""
    named = re.findall(r"`(acdc-export[^`]*)`", path.read_text())
    run = [line for step in steps(path) for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    for line in [*named, *run]:
        words = shlex.split(line, comments=True)
        if words and PurePath(words[0]).name == "acdc-export":
            yield list(takewhile(lambda word: word not in SHELL, words[1:]))


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the program makes of these arguments, without doing it. Raises what it says to a user's mistake."""
    command: Any = typer.main.get_command(app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context("acdc-export", list(arguments))
    assert not [*context.args, *getattr(context, "_protected_args", [])], "left over"
    return context.params


def test_there_are_some() -> None:
    assert [path.name for path in WORKFLOWS] == ["baseline.yml", "github-actions.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_and_their_options_exist(path: Path) -> None:
    found = [parsed(arguments) for arguments in commands(path)]
    assert len(found) >= 3
    for options in found:
        for gate in options.get("gate") or ():
            gates.parse(gate)


@pytest.mark.parametrize(
    "line", ["--pears runs/mine --target cpu", "chekc bundles/new", "check bundles/new --agianst bundles/old", "check"]
)
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    mistakes = typer.BadParameter.__bases__  # what an unknown option is too; typer has no public name for it
    with pytest.raises((AssertionError, *mistakes)):
        parsed(line.split())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_report_is_shown_and_kept_whatever_the_verdict(path: Path) -> None:
    (shown,) = (step for step in steps(path) if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    (kept,) = (step for step in steps(path) if "upload-artifact" in step.get("uses", ""))
    assert shown["if"] == kept["if"] == "always()"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_files_are_those_that_a_check_writes(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine-cpu", made("bundles/good", "bundles/old"), {})
    written = {file.name for file in (tmp_path / "mine-cpu").iterdir()}
    (kept,) = (step["with"]["path"] for step in steps(path) if "upload-artifact" in step.get("uses", ""))
    assert {PurePath(line).name for line in kept.splitlines() if line.startswith("checks/*/")} == written
    assert 'cat "checks/$BUNDLE/report.md"' in path.read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_bundle_and_the_license_are_those_of_the_target(path: Path) -> None:
    variables = yaml.safe_load(path.read_text())["env"]
    (name,) = {name for options in map(parsed, commands(path)) for name in as_list(options.get("target"))}
    target = load_target(name)
    assert variables["BUNDLE"] == f"{PurePath(variables['PAIR']).name}-{name}"
    assert variables["ACDC_EXPORT_ACCEPT_LICENSE"] == target.runtime.name
    assert target.license.accept


def as_list(value: str | list[str] | None) -> list[str]:
    """An export's --target may be repeated, a check's may not."""
    return [value] if isinstance(value, str) else value or []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_fails_the_job_is_the_exit_code(path: Path) -> None:
    checking = [step for step in steps(path) if "acdc-export check" in step.get("run", "")]
    assert checking
    for step in checking:
        assert "continue-on-error" not in step
        assert "||" not in step["run"]
