"""What is shown of an inspection: zeros, and the groups of sparsity patterns, layer by layer."""

from __future__ import annotations

from ..patterns import GroupCounts, parse
from ..records.inspection import Inspection, Part
from . import training
from .document import Document, Section, Table
from .format import percent


def document(inspection: Inspection) -> Document:
    """How sparse each set of weights is, then its layers, then how it was trained."""
    trained = training.sections(inspection.training) if inspection.training else []
    headline, *summary = [_total(part) for part in inspection.parts] or ["Nothing here holds weights."]
    parts = [section for part in inspection.parts for section in _sections(part)]
    return Document(headline, tuple(summary), (*parts, *trained))


def _sections(part: Part) -> list[Section]:
    """The weights that were counted, and those that could not be."""
    sections: list[Section] = [_layers(part)] if part.weights else []
    if part.uncounted:
        rows = tuple((item.name, item.operator, item.reason) for item in part.uncounted)
        sections.append(Table(f"{part.title}: not counted", ("weight", "operator", "why"), rows, text=True))
    return sections


def _counts(part: Part) -> tuple[str, str]:
    """The share of zeros, and the number of weights."""
    zeros, total = (sum(getattr(weight, what) for weight in part.weights) for what in ("zeros", "total"))
    return percent(zeros, max(1, total)), f"{total:,}"


def _total(part: Part) -> str:
    if not part.weights:
        return f"{part.title}: " + ("no weights that can be counted" if part.uncounted else "no weights")
    zeros, total = _counts(part)
    return f"{part.title}: {zeros} zeros in {total} weights"


def _layers(part: Part) -> Table:
    """A row for each weight, an asterisk where the pattern covers it."""
    kinds = list(part.weights[0].patterns) if part.weights else []
    headings = [_heading(name) for name in kinds]
    rows = [
        (
            weight.name + (" *" if weight.name in part.pruned else ""),
            percent(weight.sparsity),
            f"{weight.total:,}",
            "x".join(str(size) for size in weight.shape),
            weight.operator,
            *(_share(name, weight.patterns[name]) for name in kinds),
        )
        for weight in part.weights
    ]
    rows.append(("all", *_counts(part), "", "", *("" for _ in kinds)))
    columns = ("layer", "zeros", "weights", "shape", "operator", *headings)
    title = f"{part.title} (* pruned by the pattern)" if part.pruned else part.title
    return Table(title, columns, tuple(rows), optional=("operator", *reversed(headings), "shape"))


def _heading(name: str) -> str:
    """What is shown of a kind: the groups that conform to N:M, and the blocks that are zero."""
    kind = parse(name)
    return f"zero 1x{kind.size} blocks" if kind.kept is None else f"{name} groups"


def _share(name: str, counts: GroupCounts) -> str:
    """Per cent, or a dash where the input channels can't be divided into groups."""
    shown = counts.zero if parse(name).kept is None else counts.conforming
    return percent(shown, counts.groups, digits=1) if counts.groups else "–"
