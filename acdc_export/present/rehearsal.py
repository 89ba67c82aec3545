"""What is shown of a rehearsal: what the pattern prunes, and how long a step takes."""

from __future__ import annotations

from statistics import median

from ..records.rehearsal import Rehearsal
from .document import Document, Table
from .format import percent
from .training import left_dense


def document(rehearsal: Rehearsal) -> Document:
    """The pruned layers together, the seconds of a step, and the layers left dense."""
    layers = rehearsal.layers.values()
    zeros, total = sum(layer.zeros for layer in layers), sum(layer.total for layer in layers)
    dense = (left_dense(rehearsal.left_dense),) if rehearsal.left_dense else ()
    return Document(
        headline=f"{len(layers)} layers are pruned: {percent(zeros, max(1, total))} zeros in {total:,} weights.",
        summary=("Both halves were exported, and nothing was kept.",),
        sections=(_steps(rehearsal), *dense),
    )


def _steps(rehearsal: Rehearsal) -> Table:
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in rehearsal.steps):
        seconds = [taken for other, taken in rehearsal.steps if other == kind]
        rows.append((kind, f"{median(seconds):.3f}", str(len(seconds))))
    return Table(f"Steps of {rehearsal.batch_size} samples", ("", "median seconds", "steps taken"), tuple(rows))
