"""Text as it may stand in anybody's file: markup, escape sequences, controls, and whatever else Unicode has."""

from hypothesis import strategies as st

PIECES = [
    *("\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x.example\x1b\\", "\x9b2J", "\x1b", "\x07", "\x00"),
    *("\r", "\n", "\t", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\ud800", "\ufffe", "\xa0", "\x85"),
    *("<script>", "</td>", "<!--", "<http://x.example>", "https://x.example", "www.x.example", "&lt;", "&#124;", "&"),
    *("[a](b)", "![a](b)", "[a]: b", "[^1]: c", "](", "[", "]", "(", "!", ":", "|", "\\", "`", "```", "~~~", "~"),
    *("*", "**", "_", "__", "$x$", "#", "# ", "> ", "- ", "+ ", "1. ", "2) ", "---", "===", "[ ] ", "    ", " "),
    *("a", "conv2.weight", "é", "日本"),
]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)
