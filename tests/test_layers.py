"""Imports run downwards, never up, and nowhere in a circle: proven for every module, by the list in docs/design.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import acdc_export

PACKAGE = Path(acdc_export.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"

# What rooms may not import, at any place in them.
FOREIGN = {
    "the ground": (("errors", "version", "printable", "patterns"), {"torch", "onnx", "onnx_ir", "pydantic", "rich"}),
    "torch": (
        (
            "evidence",
            "records",
            "pair",
            "present",
            "lowering",
            "bundle",
            "engines",
            "checking",
            "evaluation",
            "options",
        ),
        {"torch", "torchvision"},
    ),
    "onnx": (
        ("evidence", "records", "pair", "present", "bundle", "engines", "checking", "evaluation", "options", "data"),
        {"onnx", "onnx_ir", "onnxscript"},
    ),
    "runtimes": (("evidence", "lowering", "evaluation", "checking"), {"deepsparse", "onnxruntime", "openvino"}),
    "the command": (("workflow", "options", "evaluation", "checking", "bundle", "lowering"), {"typer", "rich"}),
}


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, int]]:
    """What a module imports anywhere in it, lazily or for types alone too: modules of ours, and the first part of
    others."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield str(node.module).partition(".")[0], node.lineno
                continue
            base = [*package[: len(package) + 1 - node.level], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield ("." + full if full in MODULES else "." + ".".join(base)), node.lineno


def ours(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    return {target[1:] for target, _ in imports(name) if target.startswith(".")} - {name}


def room(name: str) -> str:
    """A module's room: the folder or the file at the top of the package; that of the package itself is `__init__`."""
    return name.partition(".")[0] or "__init__"


def layers() -> list[list[str]]:
    """The list in docs/design.md, from the top down."""
    section = DESIGN.read_text(encoding="utf-8").partition("## Layers")[2]
    block = re.search(r"```text\n(.*?)```", section, re.DOTALL)
    assert block, "docs/design.md has no list of layers"
    return [re.findall(r"[a-z_]+", line) for line in block[1].splitlines() if line.strip()]


def test_every_module_is_in_a_layer_and_every_layer_has_a_module() -> None:
    listed = [name for layer in layers() for name in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == {room(name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name: str) -> None:
    height = {listed: at for at, layer in enumerate(layers()) for listed in layer}
    up = [target for target in ours(name) if room(target) != room(name) and height[room(target)] <= height[room(name)]]
    assert not up, f"{name or 'the package'} imports what stands above it or beside it: {', '.join(sorted(up))}"


def test_there_are_no_circles() -> None:
    """Within a room, too. A package that offers the names of its modules is above them, and they don't import it."""
    TopologicalSorter({name: ours(name) for name in MODULES}).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("what", FOREIGN)
def test_rooms_know_nothing_of(what: str) -> None:
    rooms, foreign = FOREIGN[what]
    for name in MODULES:
        if room(name) in rooms:
            known = {target for target, _ in imports(name)} & foreign
            assert not known, f"{name} imports {', '.join(sorted(known))}"


def test_targets_import_nothing_of_the_package() -> None:
    """But for the compiler, which is the runtime of one."""
    compiler = {"from acdc_export import native", "from acdc_export.native import toolchain"}
    for path in (PACKAGE.parent / "targets").rglob("*.py"):
        lines = re.findall(r"^\s*((?:import|from) acdc_export\b[^#\n]*?) *(?:#.*)?$", path.read_text(), re.MULTILINE)
        assert set(lines) <= (compiler if path.parent.name == "native" else set()), path
