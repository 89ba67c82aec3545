"""Timing of one evaluation or of several: all of their halves and controls take turns, in one measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import EngineError, GraphError
from ..evidence import batches, latency, parity, stats
from ..evidence.gates import settled
from ..evidence.latency import Alternation, Latency, Samples
from ..evidence.metrics import Facts, timed_values
from ..pair import HALVES, Half
from .lowering import lower
from .setup import Deployment, Evaluation
from .static import StaticResults


@dataclass(frozen=True)
class Workload:
    """What is measured by itself: a batch size, on so many cores."""

    batch_size: int
    threads: int

    def __str__(self) -> str:
        return f"b{self.batch_size}t{self.threads}"


@dataclass(frozen=True)
class Timed:
    """What timing found of a evaluation."""

    latency: tuple[Latency, ...]  # the sparse half against its dense alternatives: the workload that is judged first
    samples: dict[str, Samples]  # of each workload
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """What timing found: of each evaluation by itself, and of all variants, as `variant_name` has them."""

    evaluations: tuple[Timed, ...]
    workloads: dict[Workload, Alternation]
    notes: tuple[str, ...]  # controls and workloads that were not measured


@dataclass(frozen=True)
class _Controls:
    """The twin in the runtimes that serve it beside the evaluations', and a note for each that could not take it."""

    models: dict[tuple[str, int], tuple[Path, Deployment]]  # by name and batch size
    notes: dict[str, str]  # by name


def variant_name(half: Half, deployment: str) -> str:
    """A half in a deployment, as an variant of the measurement."""
    return f"{half}@{deployment}"


def workloads(evaluation: Evaluation) -> list[Workload]:
    """What is measured of a evaluation; the first one is judged."""
    every = len(evaluation.machine.cpus)
    sizes = [evaluation.gated, *(size for size in evaluation.batch_sizes if size != evaluation.gated)]
    threads = [every, *(count for count in evaluation.threads if count != every)]
    return [Workload(size, count) for count in threads for size in sizes]


def measure(examined: Sequence[StaticResults], plan: latency.Plan, alpha: float) -> Timing:
    """Let the halves of all evaluations, and their controls, take turns at each batch size and number of threads.

    The gated one is measured until the gates of all are decided or the budget is spent, each other for half of it.

    Raises:
        EngineError: an engine can't be opened for what the gates judge. Elsewhere, that is a note.
    """
    evaluations = [one.evaluation for one in examined]
    first = evaluations[0]
    controls = _lower_controls(evaluations)
    taken: dict[Workload, Alternation] = {}
    left: list[str] = []
    every = workloads(first)
    with first.progress.task("latency", plan.budget * (1 + len(every)) / 2) as advance:
        for workload in every:
            judged, title = workload == every[0], title_of(workload, first)
            try:
                taken[workload] = latency.measure(
                    _variants(examined, controls, workload),
                    first.inputs(workload.batch_size),
                    batch_size=workload.batch_size,
                    plan=plan if judged else replace(plan, budget=plan.budget / 2),
                    alpha=alpha if judged else stats.ALPHA,
                    decided=partial(_decided, evaluations, controls) if judged else None,
                    cpus=first.machine.cpus[: workload.threads],
                    advance=partial(advance, detail=title.lower()),
                )
            except EngineError as error:
                if judged:
                    raise
                left.append(f"{title} was not measured: {error.message}")
    timed = tuple(_timed(evaluation, controls, taken, left) for evaluation in evaluations)
    return Timing(timed, taken, (*controls.notes.values(), *left))


def title_of(workload: Workload, evaluation: Evaluation) -> str:
    """A workload for readers; threads are told where they are not all that the machine has."""
    every = workload.threads == len(evaluation.machine.cpus)
    return f"Batch {workload.batch_size}" if every else f"Batch {workload.batch_size}, threads {workload.threads}"


def _lower_controls(evaluations: Sequence[Evaluation]) -> _Controls:
    """The twin for each control that is not in the run already."""
    found = _Controls({}, {})
    there = {evaluation.deployment.name for evaluation in evaluations}
    for evaluation in evaluations:
        for control in evaluation.controls:
            if control.name in there:
                continue
            there.add(control.name)
            try:
                lowered = lower(evaluation, "dense", evaluation.scratch / f"control-{control.name}", control)
                for size, model in lowered.items():
                    _check_control(evaluation, control, model.path, size)
            except (EngineError, GraphError) as error:
                found.notes[control.name] = f"The control {control.name} was not measured: {error.message}"
            else:
                for size, model in lowered.items():
                    found.models[control.name, size] = (model.path, control)
    return found


def _check_control(evaluation: Evaluation, control: Deployment, model: Path, batch_size: int) -> None:
    """A control that gives other answers than the twin is no alternative to it. Raises `EngineError`."""
    reference = evaluation.pair.reference
    with closing(evaluation.open(model, batch_size, control)) as engine:
        outputs = batches.run(engine, reference.inputs, batch_size)
    found = parity.compare(outputs, reference.dense, control.tolerance)
    if not found.ok:
        raise EngineError(
            f"its outputs need a tolerance of {found.required:.1e}, and {found.tolerance:.0e} is allowed.",
            "Look at the passes in its target.toml.",
        )


def _variants(examined: Sequence[StaticResults], controls: _Controls, workload: Workload) -> dict[str, latency.Open]:
    size = workload.batch_size
    variants: dict[str, latency.Open] = {}
    for one in examined:
        for half in HALVES:
            name = variant_name(half, one.evaluation.deployment.name)
            variants[name] = partial(one.evaluation.open, one.models[half, size].path, size, threads=workload.threads)
    evaluation = examined[0].evaluation
    for (name, at), (path, deployment) in controls.models.items():
        if at == size:
            variants[variant_name("dense", name)] = partial(
                evaluation.open, path, size, deployment, threads=workload.threads
            )
    return variants


def _view(evaluation: Evaluation, controls: _Controls) -> dict[str, str]:
    """The variants that concern a evaluation, by the names that they have in its report: its sparse half comes first."""
    name = evaluation.deployment.name
    found = {variant_name("sparse", name): "sparse", variant_name("dense", name): "dense"}
    for control in evaluation.controls:
        if control.name not in controls.notes and control.name != name:
            found[variant_name("dense", control.name)] = variant_name("dense", control.name)
    return found


def _decided(evaluations: Sequence[Evaluation], controls: _Controls, taken: Alternation) -> bool:
    return all(
        settled(evaluation.gates, timed_values(facts(evaluation, taken.seen(_view(evaluation, controls)))))
        for evaluation in evaluations
    )


def _timed(
    evaluation: Evaluation, controls: _Controls, taken: Mapping[Workload, Alternation], left: Sequence[str]
) -> Timed:
    view = _view(evaluation, controls)
    found = {workload: one.seen(view) for workload, one in taken.items()}
    notes = [controls.notes[control.name] for control in evaluation.controls if control.name in controls.notes]
    return Timed(
        latency=tuple(found.values()),
        samples={str(workload): one.samples(view) for workload, one in taken.items()},
        notes=(
            *notes,
            *left,
            *(note for workload, one in found.items() for note in latency.notes(one, title_of(workload, evaluation))),
        ),
    )


def facts(evaluation: Evaluation, measured: Latency) -> Facts:
    """The facts that come from time. The reference is the twin in the same engine."""
    sparse, speedup, tail = measured.variants.get("sparse"), measured.ratios.get("dense"), measured.tails.get("dense")
    asked = (variant_name("dense", name) for name in evaluation.asked_controls if name != evaluation.deployment.name)
    return Facts(
        peak_memory=sparse.memory if sparse else None,
        p50_ratio=speedup.inverse() if speedup else None,
        p99_ratio=tail.inverse() if tail else None,
        speedup=speedup,
        alternatives={**dict.fromkeys(asked), **measured.ratios},
    )


def fastest_dense(measured: Latency) -> str | None:
    """The dense variant that a user would pick instead; None where none was measured."""
    return min(measured.ratios, key=lambda name: measured.ratios[name].value, default=None)
