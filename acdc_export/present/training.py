"""How a pair was trained, as tables: its phases, and what both halves cost."""

from __future__ import annotations

from collections.abc import Mapping

from ..records.history import Cost, EpochRecord, History
from .report import Table

UNKNOWN = "Nothing is known of how it was trained."
"""What is said of a pair without a history."""


def tables(history: History | None, left_dense: Mapping[str, str]) -> list[Table]:
    """All that a history holds, in reading order; without one only the layers left dense."""
    found = [_phases(history)] if history else []
    if history and history.cost:
        found.append(_cost(history.cost))
    if left_dense:
        rows = tuple((name or "(the model itself)", why) for name, why in left_dense.items())
        found.append(Table("Layers left dense", ("layer", "why"), rows, text=True))
    return found


def accuracy(epoch: EpochRecord) -> float | None:
    """The accuracy that was recorded of an epoch, 0 to 1: of the metric whose name says so."""
    return _metric(epoch, "accuracy")


def _phases(history: History) -> Table:
    """A row for each phase, with what was recorded at its end, and one for the twin's own way."""
    last: dict[tuple[int, str], EpochRecord] = {}
    for epoch in history.epochs:
        at = next((number for number, phase in enumerate(history.phases) if epoch.index < phase.end), -1)
        last[at, epoch.half] = epoch
    rows: list[tuple[str, ...]] = []
    for number, phase in enumerate(history.phases):
        weights = sum(phase.nonzeros.values())
        total = max((sum(one.nonzeros.values()) for one in history.phases), default=0)
        rows.append(
            (
                phase.kind,
                f"{phase.start}-{phase.end - 1}",
                *_end(last.get((number, "sparse"))),
                f"{100 * (1 - weights / total):.2f} %" if total else "",
                _percent(phase.changed),
                _percent(phase.regrown),
            )
        )
    final = history.phases[-1]
    twin = last.get((len(history.phases) - 1, "dense"))
    rows.append(("dense twin", f"{final.start}-{final.end - 1}", *_end(twin), "0.00 %", "", ""))
    columns = ("phase", f"{history.unit}s", "loss", "accuracy", "zeros", "masks changed", "regrown")
    title = "Training, at the end of each phase"
    return Table(title, columns, tuple(rows), optional=("regrown", "masks changed", "loss"))


def _cost(cost: Cost) -> Table:
    def row(what: str, flops: float, of: float) -> tuple[str, str, str]:
        return what, f"{flops:.3g}", f"{100 * flops / of:.1f} %"

    whole = cost.training_multiplied
    rows = (
        row("inference, dense twin", cost.dense, cost.dense),
        row("inference, sparse half", cost.sparse, cost.dense),
        row("training, dense twin, zeros left out", cost.training_dense, whole),
        row("training, sparse half, zeros left out", cost.training_sparse, whole),
        row("training, either, as dense kernels multiply", whole, whole),
    )
    return Table("FLOPs for one sample", ("", "FLOPs", "of dense"), rows)


def _end(epoch: EpochRecord | None) -> tuple[str, str]:
    """Loss and accuracy, as far as they were recorded."""
    if epoch is None:
        return "", ""
    loss, right = _metric(epoch, "loss"), accuracy(epoch)
    return "" if loss is None else f"{loss:.3f}", "" if right is None else f"{100 * right:.2f} %"


def _metric(epoch: EpochRecord, name: str) -> float | None:
    return next((value for key, value in epoch.metrics.items() if key.endswith(name)), None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
