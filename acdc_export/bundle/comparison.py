"""What people read of a comparison, and the folder that it is kept in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from .. import files
from ..present import comparison as tables
from ..present import terminal
from ..present.comparison_picture import svg
from ..present.markdown import table as markdown_table
from ..records.comparison import DERIVED, SCHEMA_VERSION, Comparison
from ..records.report import plain_json

MARKER = "comparison.json"
_PICTURE = "comparison.svg"


def to_json(found: Comparison) -> dict[str, Any]:
    """The content of `comparison.json`. Numbers that are not finite become the strings JSON has no numbers for."""
    derived = {key: getattr(found, key) for key in DERIVED}
    content: dict[str, Any] = plain_json({"schema_version": SCHEMA_VERSION, **derived, **asdict(found)})
    return content


def write(path: Path, found: Comparison, samples: dict[str, NDArray[Any]]) -> None:
    """Write the folder of a comparison, in place of an older one: JSON, samples.npz, Markdown and its picture.

    Raises:
        OutputError: it can't be written; what was there stays.
    """
    with files.new_folder(path, MARKER) as folder:
        files.write_json(folder / MARKER, to_json(found))
        np.savez_compressed(folder / "samples.npz", **samples)  # type: ignore[arg-type]
        (folder / "comparison.md").write_text(as_markdown(found), encoding="utf-8")
        (folder / _PICTURE).write_text(svg(found), encoding="utf-8")


def render(found: Comparison, width: int = 120) -> Group:
    """All of it, for a terminal of `width` columns."""
    colour = "green" if found.recommended else "red"
    parts: list[RenderableType] = [Text(tables.headline(found), style=f"bold {colour}")]
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in tables.summary(found)]
    parts += [Padding(terminal.shown(table, width - 2), (1, 0, 0, 2)) for table in tables.tables(found)]
    parts.append(Padding(Text("\n".join(tables.context(found)), style="dim"), (1, 0, 0, 2)))
    return Group(*parts)


def as_markdown(found: Comparison) -> str:
    """All of it as Markdown; ends with a newline."""
    parts = [f"# {tables.headline(found)}", *tables.summary(found), f"![Latency and accuracy]({_PICTURE})"]
    for made in tables.tables(found):
        parts += [f"## {made.title}", markdown_table(made)]
    origin = f"Made on {found.created} by acdc-export {found.version}."
    parts += ["## What this rests on", "\n".join(f"- {line}" for line in (*tables.context(found), origin))]
    return "\n\n".join(parts) + "\n"
