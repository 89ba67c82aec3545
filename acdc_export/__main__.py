"""`python -m acdc_export` is the command, and this its entry point: an interrupt while it is imported is caught too."""

from __future__ import annotations

import io
import signal
import sys
from typing import Any


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C, as a class of its own.

    CPython notes when a KeyboardInterrupt itself leaves an `exec` or `eval` of a string, which libraries run while
    they are imported, and a process started with `-m` then ends by the signal whatever caught the exception
    (`unhandled_keyboard_interrupt` in pythonrun.c and main.c). It looks for the very class, not for its children.
    """


def _interrupt(number: int, frame: Any) -> None:
    raise _Interrupt


def _print_whatever_the_encoding() -> None:
    """Have characters that the encoding of a stream lacks (latin-1, ASCII) written as escapes, and not raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _interrupt)  # what CI and containers end a job with
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as nohup would have it
        signal.signal(signal.SIGINT, _interrupt)
    _print_whatever_the_encoding()
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        print("Interrupted. What was there before is unchanged.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
