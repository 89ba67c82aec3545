"""Text of a document is text in Markdown as well: whatever it is, it begins nothing and ends nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from markdown_it import MarkdownIt
from markdown_it.token import Token

from acdc_export.present.document import Document, Notes, RunChart, Span, Table
from acdc_export.present.markdown import escape, render
from acdc_export.printable import printable

from .hostile import HOSTILE

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def of(text: str) -> Document:
    """A document with the text in every place."""
    return Document(
        text,
        (text, text),
        (
            Table(text, (text, "n"), ((text, text), (text, "1"))),
            RunChart("run", text, text, text, "epoch", (Span("dense", 0, 1),), (), (), (text,)),
            Notes(text, (text,)),
        ),
    )


def plain(token: Token) -> str:
    """The text of inline content. It fails where there is more than text."""
    children = token.children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    return "".join(child.content for child in children)


def structure(text: str) -> Iterator[str]:
    """The tokens that `of(text)` has to open, in their order."""
    item = ("list_item_open", *(("paragraph_open", "inline") if printable(text).strip() else ()))
    heading = ("heading_open", "inline")
    yield from (*heading, "bullet_list_open", *item, *item)
    yield from (*heading, "table_open", "thead_open", "tr_open", *("th_open", "inline") * 2, "tbody_open")
    yield from ("tr_open", *("td_open", "inline") * 2) * 2
    yield from (*heading, "paragraph_open", "inline", "bullet_list_open", *item)
    yield from (*heading, "bullet_list_open", *item)


@given(HOSTILE)
@example("[a]: b")
@example("a\\")
@example("\\|")
@example("_a_ *b* ~~c~~ `d`")
def test_it_reads_as_what_it_was(text: str) -> None:
    tokens = PARSER.parse(render(of(text)))
    opened = [token for token in tokens if token.type.endswith("_open") or token.type == "inline"]
    assert [token.type for token in opened] == [*structure(text)]
    (picture,) = [child for token in tokens for child in token.children or () if child.type == "image"]
    assert picture.attrs["src"] == "run.svg"
    for token in opened:
        if token.type == "inline" and token.content not in ("n", "1") and picture not in (token.children or ()):
            assert plain(token) == printable(text).strip()


@given(HOSTILE)
def test_no_address_becomes_a_link_by_itself(text: str) -> None:
    """GitHub makes links of addresses without any markup."""
    assert not re.search(r"(?<!\\)://|www\.", escape(text), re.IGNORECASE)


@pytest.mark.parametrize(
    "text",
    [
        "latency.p50.ratio <= 1.03", "conv2.weight", "avx512_vnni", "1.05 [1.04, 1.06] of 5", "a & b", "50 %",
        "(parity), 3.4x", "don't", "→ –", "* sparse half", "sparse@cpu-int8", "C:x",
    ],
)  # fmt: skip
def test_what_begins_nothing_stays_as_readable_as_it_is(text: str) -> None:
    assert escape(text) == text


def test_levels_and_what_a_picture_needs() -> None:
    text = render(of("a"), level=2, pictures=False)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["## a", *["### a"] * 3]
    assert "The picture needs matplotlib: pip install 'acdc-export[charts]'" in text
    assert "run.svg" not in text
