"""All that the command prints: results to standard output, everything else to standard error.

While a command runs, what else is printed goes to standard error: a user's own code may print too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from ..errors import AcdcExportError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..checking import Check
    from ..inspection import Part, Training
    from ..options import Ask, Outcome
    from ..progress import Progress
    from ..training import Rehearsal
    from ..workflow import Verification

Makers = list["Callable[[int], RenderableType]"]  # of something to show in so many columns


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
        from ..progress import SILENT, Terminal

        return SILENT if self.json or self.quiet else Terminal()

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

    def show(self, record: Any) -> None:
        """Print a record: an outcome, a check, a verification or a rehearsal."""
        self._show(*_VIEWS[type(record).__name__](record))

    def show_inspection(self, parts: Sequence[Part], training: Training | None) -> None:
        """Print what `inspect` saw."""
        self._show(*_inspection(parts, training))

    def _show(self, document: Any, shown: str | Makers) -> None:
        if self.json or isinstance(shown, str):
            self.result(document, str(shown))
            return
        from rich.console import Console

        from ..present.terminal import plain

        console = Console(highlight=False, file=self.stream)
        for make in shown:
            if console.is_terminal:
                console.print(make(console.width))
            else:
                self.text(plain(make(120)))

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
            typer.echo(f"error: {where}{error.strerror}.\nCheck the permissions and the free space there.", err=True)
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


View = tuple[Any, str | Makers]
"""A record as JSON, and for people: as text, or as what is made for so many columns."""


def _outcome(outcome: Outcome) -> View:
    """The report of the only bundle, or the comparison of several."""
    if outcome.comparison is not None:
        from ..bundle import comparison

        return comparison.to_json(outcome.comparison), [partial(comparison.render, outcome.comparison)]
    from ..present.terminal import render
    from ..records.report import to_json

    (bundle,) = outcome.bundles
    return {"bundle": str(bundle.path), **to_json(bundle.report)}, [partial(render, bundle.report)]


def _check(check: Check) -> View:
    from ..checking import render, to_json

    return to_json(check), [partial(render, check)]


def _verification(verification: Verification) -> View:
    from ..present.report import MARKS

    lines = [f"{MARKS[verdict.status]} {verdict.gate}: {verdict.detail}" for verdict in verification.checks]
    lines += [f"Note: {note}" for note in verification.notes]
    return {**asdict(verification), "exit_code": verification.exit_code}, "\n".join(lines)


def _rehearsal(rehearsal: Rehearsal) -> View:
    from statistics import median

    layers = rehearsal.layers.values()
    zeros, total = sum(layer.zeros for layer in layers), sum(layer.total for layer in layers)
    lines = [f"{len(layers)} layers are pruned: {100 * zeros / total:.2f} % zeros in {total:,} weights."]
    for kind in dict.fromkeys(kind for kind, _ in rehearsal.steps):
        seconds = [taken for other, taken in rehearsal.steps if other == kind]
        size = rehearsal.batch_size
        lines.append(f"{kind}: {median(seconds):.3f} s for a step of {size} samples, {len(seconds)} taken")
    return asdict(rehearsal), "\n".join([*lines, "Both halves were exported, and nothing was kept."])


def _inspection(parts: Sequence[Part], training: Training | None) -> View:
    from .. import inspection
    from ..present import training as training_tables
    from ..present.terminal import shown

    tables = [inspection.table(part) for part in parts]
    tables += training_tables.tables(training.history, training.dense) if training else []
    document = {"parts": [asdict(part) for part in parts], "training": asdict(training) if training else None}
    return document, [partial(shown, table) for table in tables]


_VIEWS: dict[str, Callable[[Any], View]] = {
    "Outcome": _outcome,
    "Check": _check,
    "Verification": _verification,
    "Rehearsal": _rehearsal,
}
