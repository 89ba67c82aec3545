"""A document as Markdown (GitHub's kind), for a pull request, a job summary or a report beside its pictures.

Text of a document is text there, too: it opens no tag, link, image, code span or cell, and stays in its line.
"""

from __future__ import annotations

import re

from ..printable import printable
from .document import Chart, Document, Notes, Section, Table

MISSING = "The picture needs matplotlib: pip install 'acdc-export[charts]'"

# What would begin something: a backslash escapes it. An underscore within a word is none of it, nor is a bracket
# that no target follows; so names and intervals stay as readable as they are.
_ESCAPED = re.compile(r"[\\`|$]|[*~](?=\S)|(?<![^\W_])_(?=\S)|\](?=[(\[:])|:(?=//)|(?<=www)\.|#(?=#*$)", re.IGNORECASE)
_LABEL = re.compile(rf"{_ESCAPED.pattern}|[\[\]]", re.IGNORECASE)  # within brackets of ours
_ENTITIES = {"<": re.compile(r"<(?=[A-Za-z/!?])"), "&": re.compile(r"&(?=#?\w+;)")}
_BLOCK = re.compile(r"^(?:(\d{1,9})(?=[.)](?:\s|$))|(?=[-+*=#>~\[]))")


def render(document: Document, level: int = 1, pictures: bool = True) -> str:
    """All of it; ends with a newline.

    Args:
        level: of the headline, 1 to 5; titles are one below.
        pictures: whether the charts lie beside the text as `NAME.svg`. Where not, the text says what they need.
    """
    parts = [f"{'#' * level} {escape(document.headline)}", _bullets(document.summary)]
    for section in document.sections:
        parts += [f"{'#' * (level + 1)} {escape(section.title)}", *_content(section, pictures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str, special: re.Pattern[str] = _ESCAPED) -> str:
    """Text for within a line: a heading, a cell."""
    text = printable(text).strip()
    text = special.sub(r"\\\g<0>", _ENTITIES["&"].sub("&amp;", text))
    return _ENTITIES["<"].sub("&lt;", text)


def _content(section: Section, pictures: bool) -> list[str]:
    if isinstance(section, Table):
        return [_table(section)]
    if isinstance(section, Notes):
        return [_bullets(section.lines)]
    return [_picture(section) if pictures else MISSING, _bullets(section.notes)]


def _picture(chart: Chart) -> str:
    return f"![{escape(chart.caption, _LABEL)}]({chart.name}.svg)"


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {_begun(escape(line))}" for line in lines)


def _begun(text: str) -> str:
    """Text at the start of a line, where it begins no list, heading, quotation or task."""
    return _BLOCK.sub(r"\1\\", text)


def _table(table: Table) -> str:
    rule = ["---", *("---" if table.text else "---:" for _ in table.columns[1:])]
    lines = [[escape(cell) for cell in line] for line in (table.columns, *table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
