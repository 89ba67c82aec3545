"""The report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from . import tables
from .record import Report


def markdown(report: Report) -> str:
    """The whole report; ends with a newline."""
    parts = [f"# {tables.headline(report)}", *tables.summary(report)]
    for table in (*tables.tables(report), *tables.details(report)):
        parts += [f"## {table.title}", _table(table)]
    made = f"Made on {report.created} by acdc-export {report.version}."
    parts += ["## What this rests on", "\n".join(f"- {line}" for line in (*tables.context(report), made))]
    return "\n\n".join(parts) + "\n"


def _table(table: tables.Table) -> str:
    rule = ["---", *("---" if table.text else "---:" for _ in table.columns[1:])]
    lines = [table.columns, tuple(rule), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
