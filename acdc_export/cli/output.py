"""All that the command prints: results to standard output, everything else to standard error.

While a command runs, what else is printed goes to standard error: a user's own code may print too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from ..errors import AcdcExportError
from ..printable import printable
from ..progress import SILENT

if TYPE_CHECKING:
    from ..options import Ask, Outcome
    from ..progress import Progress


class Output:
    """Where a command's results go, and in which form. To be made before anything else is redirected."""

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.stream = sys.stdout

    @property
    def dialog(self) -> dict[str, Any]:
        """The options by which what runs engines speaks to the user."""
        return {"ask": self.ask, "progress": self.progress}

    @property
    def progress(self) -> Progress:
        """What says how far the work is."""
        if self.json or self.quiet:
            return SILENT
        from ..present.progress import TerminalProgress

        return TerminalProgress()

    @property
    def ask(self) -> Ask | None:
        """A prompt for a license, where there is somebody to answer it."""
        if self.json or self.quiet or sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        return _ask

    def result(self, document: Any, text: str) -> None:
        """Print a result: the document as JSON, or the text."""
        if self.json:
            import json

            text = json.dumps(document, indent=2)
        self.text(text)

    def text(self, text: str, *, newline: bool = True) -> None:
        """Print text as it is."""
        typer.echo(text, file=self.stream, nl=newline)

    def rows(self, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows of equal length: a list of objects by `names` as JSON, or aligned columns."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        self.result([dict(zip(names, row, strict=True)) for row in rows], "\n".join(lines))

    def show(self, record: object, **more: str) -> None:
        """Print a record for people, or as JSON with what else is to be said."""
        if self.json:
            from ..records import to_json

            self.result({**more, **to_json(record)}, "")
        else:
            from .. import present

            present.show(record, self.stream)

    def show_outcome(self, outcome: Outcome) -> None:
        """Print the report of the only bundle, or the comparison of several."""
        if outcome.comparison is not None:
            self.show(outcome.comparison)
        else:
            (bundle,) = outcome.bundles
            self.show(bundle.report, bundle=str(bundle.path))

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn every end of a command into its exit code, and a user's mistake into two lines."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except AcdcExportError as error:
            if self.json:
                error_document = {"message": error.message, "remedy": error.remedy}
                self.result({"error": error_document, "exit_code": error.exit_code}, "")
            else:
                typer.echo(f"error: {error.message}\n{error.remedy}", err=True)
            raise typer.Exit(error.exit_code) from None
        except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or Ctrl-D at a prompt
            typer.echo("Interrupted. What was there before is unchanged.", err=True)
            raise typer.Exit(130) from None
        except (typer.Exit, BrokenPipeError):
            raise
        except OSError as error:  # a file or stream that the system refuses: nothing that a bug report would mend
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(
                f"error: {printable(where)}{error.strerror}.\nCheck the permissions and the free space there.", err=True
            )
            raise typer.Exit(2) from None
        except Exception:
            import traceback

            traceback.print_exc()
            typer.echo("This is a bug in acdc-export. Please report it with the lines above.", err=True)
            raise typer.Exit(70) from None


def _ask(notice: str) -> bool:
    typer.echo(notice, err=True)
    try:
        return typer.confirm("Do you accept this license?", err=True)
    except typer.Abort:
        typer.echo(err=True)  # the prompt's line is not ended yet
        raise
