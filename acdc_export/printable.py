"""Text that came from somewhere else (a file, a runtime, a user), without what a terminal would obey."""

from __future__ import annotations

import re

# Escape sequences as ECMA-48 has them: CSI (colours, the cursor) and OSC (titles, links, the clipboard).
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\x9d]*(?:\x07|\x1b\\|\x9c)"
)


def printable(text: str) -> str:
    """The text in one line, without escape sequences, control characters, bidi controls and lone surrogates.

    Newlines, tabs and other space become a plain space each.
    """
    spaced = re.sub(r"\s", " ", _SEQUENCES.sub("", text))
    return "".join(character for character in spaced if character.isprintable())


def printable_lines(text: str) -> str:
    """The same for text that may have several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
