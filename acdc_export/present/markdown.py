"""The report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from ..records.report import Report
from . import report as tables
from . import training

PICTURE = "run.svg"
"""The file beside the report that `picture.svg` is written to."""


def markdown(report: Report) -> str:
    """The whole report; ends with a newline."""
    parts = [f"# {tables.headline(report)}", *tables.summary(report)]
    for made in (*tables.tables(report), *tables.details(report)):
        parts += [f"## {made.title}", table(made)]
    parts += [
        "## How it was trained",
        f"![Phases and accuracy]({PICTURE})" if report.pair.history else training.UNKNOWN,
    ]
    for made in training.tables(report.pair.history, report.pair.left_dense):
        parts += [f"### {made.title}", table(made)]
    origin = f"Made on {report.created} by acdc-export {report.version}."
    parts += ["## What this rests on", "\n".join(f"- {line}" for line in (*tables.context(report), origin))]
    return "\n\n".join(parts) + "\n"


def table(made: tables.Table) -> str:
    """A table as Markdown has it."""
    rule = ["---", *("---" if made.text else "---:" for _ in made.columns[1:])]
    lines = [made.columns, tuple(rule), *made.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
