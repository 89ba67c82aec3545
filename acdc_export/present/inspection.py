"""What is shown of an inspection: zeros, 2:4 groups and 1x4 blocks, layer by layer."""

from __future__ import annotations

from ..records.inspection import Inspection, Part
from . import training
from .document import Document, Table
from .format import percent


def document(inspection: Inspection) -> Document:
    """How sparse each set of weights is, then its layers, then how it was trained."""
    trained = training.sections(inspection.training) if inspection.training else []
    headline, *summary = [_total(part) for part in inspection.parts] or ["Nothing here holds weights."]
    return Document(headline, tuple(summary), (*(_layers(part) for part in inspection.parts), *trained))


def _counts(part: Part) -> tuple[str, str]:
    """The share of zeros, and the number of weights."""
    zeros, total = (sum(getattr(weight, what) for weight in part.weights) for what in ("zeros", "total"))
    return percent(zeros, max(1, total)), f"{total:,}"


def _total(part: Part) -> str:
    zeros, total = _counts(part)
    return f"{part.title}: {zeros} zeros in {total} weights"


def _layers(part: Part) -> Table:
    """A row for each weight, an asterisk where the pattern covers it."""
    rows = [
        (
            weight.name + (" *" if weight.name in part.pruned else ""),
            percent(weight.sparsity),
            f"{weight.total:,}",
            "x".join(str(size) for size in weight.shape),
            weight.operator,
            _share(weight.two_of_four_groups),
            _share(weight.zero_blocks),
        )
        for weight in part.weights
    ]
    rows.append(("all", *_counts(part), "", "", "", ""))
    columns = ("layer", "zeros", "weights", "shape", "operator", "2:4 groups", "zero 1x4 blocks")
    title = f"{part.title} (* pruned by the pattern)" if part.pruned else part.title
    return Table(title, columns, tuple(rows), optional=("operator", "zero 1x4 blocks", "2:4 groups", "shape"))


def _share(counts: tuple[int, int]) -> str:
    """Per cent, or a dash where groups of four input channels don't exist."""
    return percent(*counts, digits=1) if counts[1] else "–"
