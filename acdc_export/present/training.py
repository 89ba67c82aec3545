"""What is shown of a training run: its phases, accuracy on the way, and what both halves cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..records.history import Cost, EpochRecord, History
from ..records.inspection import Training
from .document import Document, Notes, RunChart, Section, Span, Table
from .format import count, percent


def document(training: Training) -> Document:
    """The run by itself."""
    history = training.history
    if history is None:
        return Document(f"{training.name}: a pair from elsewhere", (), tuple(sections(training)))
    end = history.phases[-1].end if history.phases else 0
    headline = f"{training.name}: {count(end, history.unit)} in {count(len(history.phases), 'phase')}"
    return Document(headline, (), tuple(sections(training)))


def sections(training: Training) -> list[Section]:
    """A picture of the run, its phases as a table, its cost where it is known, and the layers left dense.

    Of a pair without a history only these layers, and a note that says so.
    """
    history = training.history
    shown: list[Section] = []
    if history is None:
        shown.append(Notes("How it was trained", ("Nothing is known of how it was trained.",)))
    elif history.phases:
        shown += [_chart(training.name, history), _phases(history), *_collapsed(history)]
    if history and history.cost:
        shown.append(_cost(history.cost))
    elif history and history.cost_unknown:
        shown.append(Notes("FLOPs for one sample", (f"FLOPs for one sample are not known: {history.cost_unknown}.",)))
    if training.left_dense:
        shown.append(left_dense(training.left_dense))
    return shown


def left_dense(layers: Mapping[str, str]) -> Table:
    """The layers that a pattern leaves dense, and why."""
    rows = tuple((name or "(the model itself)", why) for name, why in layers.items())
    return Table("Layers left dense", ("layer", "why"), rows, text=True)


def _collapsed(history: History) -> list[Notes]:
    """The pruned layers that were zero throughout at the end of a phase, and those that are in a half."""
    ends: dict[str, list[str]] = {}
    for phase in history.phases:
        for name in _empty(phase.nonzeros):
            ends.setdefault(name, []).append(f"{phase.start}-{phase.end - 1}")
    lines = [f"{name}: in {history.unit}s {', '.join(spans)}." for name, spans in ends.items()]
    for half, nonzeros in (("sparse half", history.phases[-1].nonzeros), ("dense twin", history.twin_nonzeros)):
        if names := _empty(nonzeros):
            lines.append(f"The {half} keeps no weight of {', '.join(names)}: what these layers get has no effect.")
    return [Notes("Layers that were zero throughout", tuple(lines))] if lines else []


def _empty(nonzeros: Mapping[str, int]) -> list[str]:
    return [name for name, count in nonzeros.items() if count == 0]


def _chart(name: str, history: History) -> RunChart:
    """Accuracy is the recorded metric whose name ends so, 0 to 1; without one there are only the phases."""
    places = {
        half: tuple(
            (float(epoch.index + 1), 100 * value)
            for epoch in history.epochs
            if epoch.half == half and (value := _metric(epoch, "accuracy")) is not None and math.isfinite(value)
        )
        for half in ("sparse", "dense")
    }
    twin = places["dense"]
    if twin:  # it begins where it leaves the other, at the last epoch before
        twin = (*[place for place in places["sparse"] if place[0] < twin[0][0]][-1:], *twin)
    return RunChart(
        name="run",
        title="How it was trained",
        caption="Phases and accuracy",
        subject=name,
        unit=history.unit,
        phases=tuple(Span(phase.kind, phase.start, phase.end) for phase in history.phases),
        sparse=places["sparse"],
        dense=twin,
    )


def _phases(history: History) -> Table:
    """A row for each phase, with what was recorded at its end, and one for the twin's own way."""
    last: dict[tuple[int, str], EpochRecord] = {}
    for epoch in history.epochs:
        at = next((number for number, phase in enumerate(history.phases) if epoch.index < phase.end), -1)
        last[at, epoch.half] = epoch
    rows: list[tuple[str, ...]] = [
        (
            phase.kind,
            f"{phase.start}-{phase.end - 1}",
            *_end(last.get((number, "sparse"))),
            _zeros(history, phase.nonzeros),
            _share(phase.changed),
            _share(phase.regrown),
        )
        for number, phase in enumerate(history.phases)
    ]
    final = history.phases[-1]
    twin = last.get((len(history.phases) - 1, "dense"))
    rows.append(
        ("dense twin", f"{final.start}-{final.end - 1}", *_end(twin), _zeros(history, history.twin_nonzeros), "", "")
    )
    columns = ("phase", f"{history.unit}s", "loss", "accuracy", "zeros", "masks changed", "regrown")
    title = "Training, at the end of each phase"
    return Table(title, columns, tuple(rows), optional=("regrown", "masks changed", "loss"))


def _zeros(history: History, nonzeros: Mapping[str, int]) -> str:
    """The share of zeros, where it was counted."""
    share = history.zeros(nonzeros)
    return "" if share is None else percent(share)


def _cost(cost: Cost) -> Table:
    def row(what: str, flops: float, of: float) -> tuple[str, str, str]:
        return what, f"{flops:.3g}", percent(flops, of, 1)

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
    loss, right = _metric(epoch, "loss"), _metric(epoch, "accuracy")
    return "" if loss is None else f"{loss:.3f}", "" if right is None else percent(right)


def _metric(epoch: EpochRecord, name: str) -> float | None:
    """A metric that was recorded of an epoch, by the end of its name."""
    return next((value for key, value in epoch.metrics.items() if key.endswith(name)), None)


def _share(fraction: float | None) -> str:
    return "" if fraction is None else percent(fraction, digits=1)
