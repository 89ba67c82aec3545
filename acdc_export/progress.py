"""How long work tells where it is. `Progress` itself is silent; `present.progress` has the one that speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]  # advance(amount=1, detail="")


class Progress:
    """Silent progress, and the shape of every other: what the library uses unless it is told otherwise."""

    def say(self, text: str) -> None:
        """One line worth keeping: a decision, a reuse, a step that is done."""

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Advance]:
        """Work of a known size. Yields `advance(amount=1, detail="")`, to be called as it gets done."""
        yield lambda amount=1.0, detail="": None


SILENT = Progress()
