"""Find the built-in targets and pipelines: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .errors import UsageError, nearest
from .files import is_name, output_errors

_PACKAGE = Path(__file__).parent


def root(kind: str) -> Path:
    """Return the folder of all built-in "targets" or "pipelines"."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Return the names of the built-in "targets" or "pipelines", sorted."""
    pattern = "*/target.toml" if kind == "targets" else "*.toml"
    paths = root(kind).glob(pattern)
    return sorted(path.parent.name if kind == "targets" else path.stem for path in paths)


def copy(kind: str, name: str, to: Path) -> None:
    """Copy a built-in's file or folder to `to`, and give the copy that name.

    Raises:
        UsageError: `to` exists already or is no valid name, or there is no such built-in.
        OutputError: `to` can't be written.
    """
    source = find(kind, name)
    name = to.resolve().name.removesuffix(".toml")
    if not is_name(name):
        raise UsageError(f"{to} can't be the name of a {kind[:-1]}.", "Use letters, digits, '.', '_' and '-'.")
    if to.exists():
        raise UsageError(f"{to} exists already.", "Choose another name, or move it away.")
    with output_errors(to, "for the copy"):
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, to)
        toml = to / "target.toml" if to.is_dir() else to
        text = toml.read_text(encoding="utf-8")
        toml.write_text(re.sub(r'^name = ".*"', f'name = "{name}"', text, count=1, flags=re.M), encoding="utf-8")


def find(kind: str, name: str) -> Path:
    """Return the target folder or pipeline file of `name`: a built-in by its name, a user's own by its path.

    Only a name with a separator or a suffix is a path. A target folder holds code, so a file that happens to lie in the
    working directory is never taken for a built-in.

    Raises:
        UsageError: `name` is neither a built-in nor an existing path.
    """
    singular = kind[:-1]
    if "/" in name or name.endswith(".toml") or name in (".", ".."):
        path = Path(name)
        if singular == "target" and path.name == "target.toml":
            path = path.parent
        toml = path / "target.toml" if singular == "target" else path
        if not toml.is_file():
            raise UsageError(
                f"There is no {singular} at {name}.", f"`acdc-export {kind} list` shows the built-in ones."
            )
        return path
    if name not in names(kind):
        raise UsageError(
            f"Unknown {singular} '{name}'{nearest(name, names(kind))}.",
            f"Built-in {kind}: {', '.join(names(kind))}. Your own is given as a path, ./{name} say.",
        )
    return root(kind) / (name if singular == "target" else f"{name}.toml")
