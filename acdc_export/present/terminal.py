"""A document in a terminal, and as plain text. Nothing of its text but printable characters gets there."""

from __future__ import annotations

from io import StringIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from ..printable import printable
from .document import Document, Notes, Table

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not measured": "yellow"}


def render(document: Document, width: int = 120) -> Group:
    """All but its details and charts, for a terminal of `width` columns."""
    colour = f" {COLOURS[document.status]}" if document.status else ""
    parts: list[RenderableType] = [_text(document.headline, f"bold{colour}")]
    parts += [Padding(_text(line), (0, 0, 0, 2)) for line in document.summary]
    for section in document.sections:
        if isinstance(section, Table) and not section.detail:
            parts.append(Padding(_table(section, width - 2), (1, 0, 0, 2)))
        elif isinstance(section, Notes) and not section.detail:
            parts.append(Padding(Group(*(_text(line, "dim") for line in section.lines)), (1, 0, 0, 2)))
    return Group(*parts)


def plain(document: Document, width: int = 120) -> str:
    """The same without colours, with no spaces at the ends of lines."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as capture:
        console.print(render(document, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _table(table: Table, width: int) -> Group:
    """A table under its title. Where it is too wide, optional columns are left out: a number is never cut."""
    kept = list(range(len(table.columns)))
    for name in table.optional:
        if _width(table, kept) > width:
            kept.remove(table.columns.index(name))
    grid = Grid(box=None, pad_edge=False)
    for at in kept:
        number = at > 0 and not table.text
        grid.add_column(
            _text(table.columns[at], "dim"),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    for at, row in enumerate(table.rows):
        style = COLOURS[table.statuses[at]] if table.statuses else ""
        grid.add_row(*(_text(row[column], style) for column in kept))
    return Group(_text(table.title, "bold"), grid)


def _width(table: Table, kept: list[int]) -> int:
    lines = (table.columns, *table.rows)
    return sum(max(cell_len(printable(line[at])) for line in lines) + 2 for at in kept) - 2
