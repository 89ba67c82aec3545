"""The report for a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..records.report import Report
from . import report as tables

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not measured": "yellow"}


def render(report: Report, width: int = 120) -> Group:
    """The whole report, for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text(tables.headline(report), style=f"bold {COLOURS[report.verdict]}")]
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in tables.summary(report)]
    parts += [Padding(shown(table, width - 2), (1, 0, 0, 2)) for table in tables.tables(report)]
    parts.append(Padding(Text("\n".join(tables.context(report)), style="dim"), (1, 0, 0, 2)))
    return Group(*parts)


def text(report: Report) -> str:
    """The same as plain text."""
    return plain(render(report))


def plain(renderable: RenderableType, width: int = 120) -> str:
    """A renderable without colours, `width` columns wide at most, with no spaces at the ends of lines."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def shown(table: tables.Table, width: int = 120) -> Group:
    """A table under its title. Where it is too wide, optional columns are left out: a number is never cut."""
    kept = list(range(len(table.columns)))
    for name in table.optional:
        if _width(table, kept) > width:
            kept.remove(table.columns.index(name))
    grid = Table(box=None, pad_edge=False)
    for at in kept:
        numbers = at and not table.text
        grid.add_column(Text(table.columns[at], style="dim"), justify="right" if numbers else "left", no_wrap=True)
    for at, row in enumerate(table.rows):
        style = COLOURS[table.statuses[at]] if table.statuses else ""
        grid.add_row(*(Text(row[column], style=style) for column in kept))
    return Group(Text(table.title, style="bold"), grid)


def _width(table: tables.Table, kept: list[int]) -> int:
    lines = (table.columns, *table.rows)
    return sum(max(len(line[at]) for line in lines) + 2 for at in kept) - 2
