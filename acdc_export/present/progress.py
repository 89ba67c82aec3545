"""How long work tells where it is, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..printable import printable
from ..progress import Advance, Progress


class TerminalProgress(Progress):
    """A live bar where standard error is a terminal, and otherwise a line at every quarter of a task."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Advance]:
        description = printable(description)
        if not self._console.is_terminal:
            with _lines(description, total) as advance:
                yield advance
            return
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        with Bar(*columns, console=self._console, transient=True) as bar:
            identity = bar.add_task(description, total=total, detail="")
            yield lambda amount=1.0, detail="": bar.update(identity, advance=amount, detail=printable(detail))


@contextmanager
def _lines(description: str, total: float) -> Iterator[Advance]:
    """For logs: a line at every quarter of the work, so that a log shows life without drowning in it."""
    done, shown = 0.0, 0

    def advance(amount: float = 1.0, detail: str = "") -> None:
        nonlocal done, shown
        done += amount
        quarter = int(4 * done / total + 1e-9) if total else 4
        if quarter > shown:
            shown = quarter
            line = f"{description}: {min(100, 25 * quarter)} %  {printable(detail)}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    yield advance
