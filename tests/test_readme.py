"""The README and the docs: links lead somewhere, commands and names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import acdc_export
from acdc_export import resources

from .test_cli import run

ROOT = Path(acdc_export.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_commands_and_options_exist() -> None:
    shown = run("--help").stdout
    for command, rest in re.findall(r"^\$ acdc-export( [a-z]+)?([^#\n]*)", README, re.MULTILINE):
        text = run(command.strip(), "--help").stdout if command else shown
        assert text, command
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in text, f"{command} {option}"
    shown += run("check", "--help").stdout
    for option in re.findall(r"`(--[a-z-]+)", README):
        assert option in shown, option


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_is_python_and_its_names_are_public() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    nodes = [node for block in blocks for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
    names = {name.name for node in nodes for name in node.names}
    assert names
    assert names <= set(acdc_export.__all__)


def test_the_pytest_example_is_the_one_that_is_tested() -> None:
    assert (ROOT / "examples" / "ci" / "test_latency.py").read_text() in README


def test_every_built_in_target_is_in_the_table() -> None:
    for name in resources.names("targets"):
        assert f"| `{name}` |" in README
