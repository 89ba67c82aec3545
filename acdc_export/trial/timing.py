"""Timing of one trial or of several: all of their halves and controls take turns, in one measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import EngineError, GraphError
from ..evidence import batches, latency, parity, stats
from ..evidence.gates import Measurement, settled
from ..evidence.latency import Alternation, Latency, Samples
from ..pair import HALVES, Half
from .lowering import lower
from .setup import Deployment, Trial
from .steps import Examined


@dataclass(frozen=True)
class Cell:
    """What is measured by itself: a batch size, on so many cores."""

    batch_size: int
    threads: int

    def __str__(self) -> str:
        return f"b{self.batch_size}t{self.threads}"


@dataclass(frozen=True)
class Timed:
    """What timing found of a trial."""

    latency: tuple[Latency, ...]  # the sparse half against its dense alternatives: the cell that is judged first
    samples: dict[str, Samples]  # of each cell
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """What timing found: of each trial by itself, and of all arms, as `arm_name` has them."""

    trials: tuple[Timed, ...]
    cells: dict[Cell, Alternation]
    notes: tuple[str, ...]  # controls and cells that were not measured


@dataclass(frozen=True)
class _Controls:
    """The twin in the runtimes that serve it beside the trials', and a note for each that could not take it."""

    models: dict[tuple[str, int], tuple[Path, Deployment]]  # by name and batch size
    notes: dict[str, str]  # by name


def arm_name(half: Half, deployment: str) -> str:
    """A half in a deployment, as an arm of the measurement."""
    return f"{half}@{deployment}"


def cells(trial: Trial) -> list[Cell]:
    """What is measured of a trial; the first one is judged."""
    every = len(trial.machine.cpus)
    sizes = [trial.gated, *(size for size in trial.batch_sizes if size != trial.gated)]
    threads = [every, *(count for count in trial.threads if count != every)]
    return [Cell(size, count) for count in threads for size in sizes]


def measure(examined: Sequence[Examined], plan: latency.Plan, alpha: float) -> Timing:
    """Let the halves of all trials, and their controls, take turns at each batch size and number of threads.

    The gated one is measured until the gates of all are decided or the budget is spent, each other for half of it.

    Raises:
        EngineError: an engine can't be opened for what the gates judge. Elsewhere, that is a note.
    """
    trials = [one.trial for one in examined]
    first = trials[0]
    controls = _lower_controls(trials)
    taken: dict[Cell, Alternation] = {}
    left: list[str] = []
    every = cells(first)
    with first.progress.task("latency", plan.budget * (1 + len(every)) / 2) as advance:
        for cell in every:
            judged, title = cell == every[0], title_of(cell, first)
            try:
                taken[cell] = latency.measure(
                    _arms(examined, controls, cell),
                    first.inputs(cell.batch_size),
                    batch_size=cell.batch_size,
                    plan=plan if judged else replace(plan, budget=plan.budget / 2),
                    alpha=alpha if judged else stats.ALPHA,
                    decided=partial(_decided, trials, controls) if judged else None,
                    cpus=first.machine.cpus[: cell.threads],
                    advance=partial(advance, detail=title.lower()),
                )
            except EngineError as error:
                if judged:
                    raise
                left.append(f"{title} was not measured: {error.message}")
    timed = tuple(_timed(trial, controls, taken, left) for trial in trials)
    return Timing(timed, taken, (*controls.notes.values(), *left))


def title_of(cell: Cell, trial: Trial) -> str:
    """A cell for readers; threads are told where they are not all that the machine has."""
    every = cell.threads == len(trial.machine.cpus)
    return f"Batch {cell.batch_size}" if every else f"Batch {cell.batch_size}, threads {cell.threads}"


def _lower_controls(trials: Sequence[Trial]) -> _Controls:
    """The twin for each control that is not in the run already."""
    found = _Controls({}, {})
    there = {trial.deployment.name for trial in trials}
    for trial in trials:
        for control in trial.controls:
            if control.name in there:
                continue
            there.add(control.name)
            try:
                lowered = lower(trial, "dense", trial.scratch / f"control-{control.name}", control)
                for size, model in lowered.items():
                    _check_control(trial, control, model.path, size)
            except (EngineError, GraphError) as error:
                found.notes[control.name] = f"The control {control.name} was not measured: {error.message}"
            else:
                for size, model in lowered.items():
                    found.models[control.name, size] = (model.path, control)
    return found


def _check_control(trial: Trial, control: Deployment, model: Path, batch_size: int) -> None:
    """A control that gives other answers than the twin is no alternative to it. Raises `EngineError`."""
    reference = trial.pair.reference
    with closing(trial.open(model, batch_size, control)) as engine:
        outputs = batches.run(engine, reference.inputs, batch_size)
    found = parity.compare(outputs, reference.dense, control.tolerance)
    if not found.ok:
        raise EngineError(
            f"its outputs need a tolerance of {found.required:.1e}, and {found.tolerance:.0e} is allowed.",
            "Look at the passes in its target.toml.",
        )


def _arms(examined: Sequence[Examined], controls: _Controls, cell: Cell) -> dict[str, latency.Open]:
    size = cell.batch_size
    arms: dict[str, latency.Open] = {}
    for one in examined:
        for half in HALVES:
            name = arm_name(half, one.trial.deployment.name)
            arms[name] = partial(one.trial.open, one.models[half, size].path, size, threads=cell.threads)
    trial = examined[0].trial
    for (name, at), (path, deployment) in controls.models.items():
        if at == size:
            arms[arm_name("dense", name)] = partial(trial.open, path, size, deployment, threads=cell.threads)
    return arms


def _view(trial: Trial, controls: _Controls) -> dict[str, str]:
    """The arms that concern a trial, by the names that they have in its report: its sparse half comes first."""
    name = trial.deployment.name
    found = {arm_name("sparse", name): "sparse", arm_name("dense", name): "dense"}
    for control in trial.controls:
        if control.name not in controls.notes and control.name != name:
            found[arm_name("dense", control.name)] = arm_name("dense", control.name)
    return found


def _decided(trials: Sequence[Trial], controls: _Controls, taken: Alternation) -> bool:
    return all(settled(trial.gates, metrics(trial, taken.seen(_view(trial, controls)))) for trial in trials)


def _timed(trial: Trial, controls: _Controls, taken: Mapping[Cell, Alternation], left: Sequence[str]) -> Timed:
    view = _view(trial, controls)
    found = {cell: one.seen(view) for cell, one in taken.items()}
    notes = [controls.notes[control.name] for control in trial.controls if control.name in controls.notes]
    return Timed(
        latency=tuple(found.values()),
        samples={str(cell): one.samples(view) for cell, one in taken.items()},
        notes=(
            *notes,
            *left,
            *(note for cell, one in found.items() for note in latency.notes(one, title_of(cell, trial))),
        ),
    )


def metrics(trial: Trial, measured: Latency) -> dict[str, Measurement | None]:
    """The metrics that come of time; None where not measured. The reference is the twin in the same engine."""
    speedup, tail = measured.ratios.get("dense"), measured.tails.get("dense")
    return {
        "latency.p50.ratio": speedup.inverse() if speedup else None,
        "latency.p99.ratio": tail.inverse() if tail else None,
        "speedup": speedup,
        "speedup.vs_control": _versus_control(trial, measured),
    }


def fastest_dense(measured: Latency) -> str | None:
    """The dense arm that a user would pick instead; None where none was measured."""
    return min(measured.ratios, key=lambda name: measured.ratios[name].value, default=None)


def _versus_control(trial: Trial, measured: Latency) -> Measurement | None:
    """The sparse half against the fastest of all dense arms; None unless every control of the target was measured."""
    asked = {arm_name("dense", name) for name in trial.asked_controls if name != trial.deployment.name}
    return versus_fastest(measured) if asked <= set(measured.ratios) else None


def versus_fastest(measured: Latency) -> Measurement | None:
    """How many times as long the fastest of the other arms takes as the first; None where nothing was measured.

    Which one is the fastest is itself uncertain, so each end of the interval is the least of all arms' ends.
    """
    ratios = measured.ratios.values()
    if not ratios:
        return None
    return Measurement(*(min(getattr(ratio, end) for ratio in ratios) for end in ("value", "low", "high")))
