"""Text without what a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given

from acdc_export.errors import UsageError
from acdc_export.printable import printable, printable_lines

from .present.hostile import HOSTILE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ü and 日本", "plain, with ü and 日本"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07x", "x"),
        ("\x1b]8;;http://x.example\x1b\\a link\x1b]8;;\x1b\\", "a link"),
        ("\x1b]0;without an end", "]0;without an end"),
        ("a\nb\tc\xa0d", "a b c d"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("\x00\x07\x9b\ud800", ""),
    ],
)
def test_what_is_left(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(HOSTILE)
def test_nothing_else_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))


def test_errors_are_cleaned_and_keep_their_lines() -> None:
    error = UsageError("\x1b[31mNo\x1b[0m layer\n  'a\x07'", "Do\u202e this.")
    assert str(error) == "No layer\n  'a'\nDo this."
    assert (error.message, error.remedy) == ("No layer\n  'a'", "Do this.")
