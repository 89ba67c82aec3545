"""Nothing gets into a terminal but what may be seen."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from hypothesis import given
from rich.console import Console

from acdc_export.present import terminal
from acdc_export.present.document import Document, Notes, Table
from acdc_export.present.progress import TerminalProgress

from .hostile import HOSTILE


def of(text: str) -> Document:
    """A document with the text in every place."""
    table = Table(text, (text, "n"), ((text, text), (text, "1")), text=True, statuses=("pass", "fail"))
    return Document(
        text, (text, text), (table, Table(text, (text, text), ((text, text),)), Notes(text, (text,))), "fail"
    )


@given(HOSTILE)
def test_text_of_a_document_moves_colours_and_hides_nothing(text: str) -> None:
    assert all(line.isprintable() for line in terminal.plain(of(text)).split("\n"))
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(terminal.render(of(text), 100))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())  # the renderer's own colours
    assert all(line.isprintable() for line in shown.split("\n"))


def test_plain_text_is_plain_even_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in terminal.plain(of("a"))


def test_details_are_left_out() -> None:
    document = Document("a", (), (Table("shown", ("x",), ()), Table("hidden", ("x",), (), detail=True)))
    assert "shown" in terminal.plain(document)
    assert "hidden" not in terminal.plain(document)


@pytest.mark.parametrize("text", [True, False])
def test_a_name_that_is_too_long_goes_on_in_the_next_line(text: bool) -> None:
    document = Document("a", (), (Table("t", ("name", "n"), (("layer." * 30, "0.123"),), text=text),))
    shown = terminal.plain(document, 60)
    assert "…" not in shown
    assert "0.123" in shown
    assert "".join(shown.split()).replace("0.123", "").count("layer.") == 30


def test_wide_characters_count_as_two_columns() -> None:
    table = Table("t", ("name", "a", "b"), (("日本" * 10, "1" * 10, "2" * 10),), optional=("a",))
    shown = terminal.plain(Document("a", (), (table,)), 60)
    assert "1" * 10 not in shown
    assert "日本" * 10 in shown


def test_progress_is_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.say("a\x1b[31m [bold]b\u202e")
    with progress.task("c\x07", 2) as advance:
        advance(2, detail="d\x1b]0;e\x07")
    assert capsys.readouterr().err == "a [bold]b\nc: 100 %  d\n"
