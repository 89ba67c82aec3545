"""From a record to what people read of it: one document, in the terminal, as Markdown, and with pictures.

Each record has a file here, with a pure function `document(record)`. The renderers know documents alone.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TextIO

# These modules come first: the functions below have the names of two of them, and take their place in the package.
from . import markdown as _markdown
from .document import Document

_RECORDS = {
    "check.Check": "check",
    "comparison.Comparison": "comparison",
    "inspection.Inspection": "inspection",
    "inspection.Training": "training",
    "rehearsal.Rehearsal": "rehearsal",
    "report.Report": "report",
    "verification.Verification": "verification",
}
"""By the class of a record, the module here that knows it. It is imported when such a record is shown."""


def document(record: object) -> Document:
    """A record for readers. Raises `TypeError` for what is no record."""
    kind = type(record)
    module = _RECORDS.get(f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}")
    if module is None:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no record that can be shown.")
    shown: Document = import_module(f".{module}", __name__).document(record)
    return shown


def text(record: object, width: int = 120) -> str:
    """A record as plain text of at most `width` columns."""
    from . import terminal

    return terminal.plain(document(record), width)


def show(record: object, stream: TextIO | None = None) -> None:
    """Print a record to a stream, by default standard output: in a terminal's width and colours, or as plain text."""
    from rich.console import Console

    from . import terminal

    console = Console(highlight=False, file=stream)
    if console.is_terminal:
        console.print(terminal.render(document(record), console.width))
    else:
        print(text(record), file=stream)


def markdown(record: object, level: int = 1) -> str:
    """A record as Markdown, with its headline at this level. Its pictures are those that `write_markdown` draws."""
    from . import charts

    return _markdown.render(document(record), level, charts.available())


def write_markdown(path: Path, record: object, level: int = 1) -> None:
    """Write a record as Markdown, and its pictures beside it.

    Where they can't be drawn, the text says what they need.
    """
    from . import charts

    path.write_text(markdown(record, level), encoding="utf-8")
    if charts.available():
        for chart in document(record).charts:
            charts.write(path.with_name(f"{chart.name}.svg"), chart)


def draw(path: Path, record: object) -> None:
    """Write the first picture of a record, as SVG.

    Raises:
        RuntimeUnavailable: the extra `charts` is not installed.
        ValueError: there is nothing to draw.
    """
    from . import charts

    chart = next(iter(document(record).charts), None)
    if chart is None:
        raise ValueError(f"{type(record).__name__}: there is nothing to draw.")
    charts.write(path, chart)
