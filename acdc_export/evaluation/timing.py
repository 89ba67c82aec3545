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
from ..lowering import Deployment
from ..pair import HALVES, Half
from .setup import Evaluation
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
    """What timing found of an evaluation."""

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
    """A half in a deployment, as a variant of the measurement."""
    return f"{half}@{deployment}"


def workloads(evaluation: Evaluation) -> list[Workload]:
    """What is measured of an evaluation; the first one is judged."""
    every = len(evaluation.machine.cpus)
    sizes = [evaluation.gated, *(size for size in evaluation.batch_sizes if size != evaluation.gated)]
    threads = [every, *(count for count in evaluation.threads if count != every)]
    return [Workload(size, count) for count in threads for size in sizes]


def measure(results: Sequence[StaticResults], plan: latency.Plan, alpha: float) -> Timing:
    """Let the halves of all evaluations, and their controls, take turns in each workload.

    The gated workload is measured until the gates of all are decided or the budget is spent, each other for half of it.

    Raises:
        EngineError: an engine can't be opened for what the gates judge. Elsewhere, that is a note.
    """
    evaluations = [result.evaluation for result in results]
    first = evaluations[0]
    controls = _lower_controls(evaluations)
    alternations: dict[Workload, Alternation] = {}
    unmeasured: list[str] = []
    judged, *others = workloads(first)
    with first.progress.task("latency", plan.budget * (1 + len(others) / 2)) as advance:
        for workload in (judged, *others):
            title = title_of(workload, first)
            try:
                alternations[workload] = latency.measure(
                    _variants(results, controls, workload),
                    first.inputs(workload.batch_size),
                    batch_size=workload.batch_size,
                    plan=plan if workload == judged else replace(plan, budget=plan.budget / 2),
                    alpha=alpha if workload == judged else stats.ALPHA,
                    decided=partial(_decided, evaluations, controls) if workload == judged else None,
                    cpus=first.machine.cpus[: workload.threads],
                    advance=partial(advance, detail=title.lower()),
                )
            except EngineError as error:
                if workload == judged:
                    raise
                unmeasured.append(f"{title} was not measured: {error.message}")
    timed = tuple(_timed(evaluation, controls, alternations, unmeasured) for evaluation in evaluations)
    return Timing(timed, alternations, (*controls.notes.values(), *unmeasured))


def title_of(workload: Workload, evaluation: Evaluation) -> str:
    """A workload for readers; threads are told where they are not all that the machine has."""
    every = workload.threads == len(evaluation.machine.cpus)
    return f"Batch {workload.batch_size}" if every else f"Batch {workload.batch_size}, threads {workload.threads}"


def _lower_controls(evaluations: Sequence[Evaluation]) -> _Controls:
    """The twin for each control that is not in the run already."""
    controls = _Controls({}, {})
    names = {evaluation.deployment.name for evaluation in evaluations}
    for evaluation in evaluations:
        for control in evaluation.controls:
            if control.name in names:
                continue
            names.add(control.name)
            try:
                models = evaluation.lower("dense", evaluation.scratch / f"control-{control.name}", control)
                for size, model in models.items():
                    _check_control(evaluation, control, model.path, size)
            except (EngineError, GraphError) as error:
                controls.notes[control.name] = f"The control {control.name} was not measured: {error.message}"
            else:
                controls.models.update({(control.name, size): (model.path, control) for size, model in models.items()})
    return controls


def _check_control(evaluation: Evaluation, control: Deployment, model: Path, batch_size: int) -> None:
    """A control that gives other answers than the twin is no alternative to it. Raises `EngineError`."""
    reference = evaluation.pair.reference
    with closing(evaluation.open(model, batch_size, control)) as engine:
        outputs = batches.run(engine, reference.inputs, batch_size)
    result = parity.compare(outputs, reference.dense, control.settings.tolerance)
    if not result.ok:
        raise EngineError(
            f"its outputs need a tolerance of {result.required:.1e}, and {result.tolerance:.0e} is allowed.",
            "Look at the passes in its target.toml.",
        )


def _variants(results: Sequence[StaticResults], controls: _Controls, workload: Workload) -> dict[str, latency.Open]:
    batch_size, threads = workload.batch_size, workload.threads
    variants: dict[str, latency.Open] = {}
    for result in results:
        evaluation = result.evaluation
        for half in HALVES:
            name = variant_name(half, evaluation.deployment.name)
            model = result.models[half, batch_size].path
            variants[name] = partial(evaluation.open, model, batch_size, threads=threads)
    first = results[0].evaluation
    for (name, size), (path, deployment) in controls.models.items():
        if size == batch_size:
            variants[variant_name("dense", name)] = partial(first.open, path, size, deployment, threads=threads)
    return variants


def _view(evaluation: Evaluation, controls: _Controls) -> dict[str, str]:
    """The variants that concern an evaluation, by their names in its report. Its sparse half comes first."""
    own = evaluation.deployment.name
    names = {variant_name("sparse", own): "sparse", variant_name("dense", own): "dense"}
    for control in evaluation.controls:
        if control.name not in controls.notes and control.name != own:
            names[variant_name("dense", control.name)] = variant_name("dense", control.name)
    return names


def _decided(evaluations: Sequence[Evaluation], controls: _Controls, alternation: Alternation) -> bool:
    return all(
        settled(evaluation.gates, timed_values(facts(evaluation, alternation.latency(_view(evaluation, controls)))))
        for evaluation in evaluations
    )


def _timed(
    evaluation: Evaluation,
    controls: _Controls,
    alternations: Mapping[Workload, Alternation],
    unmeasured: Sequence[str],
) -> Timed:
    view = _view(evaluation, controls)
    latencies = {workload: alternation.latency(view) for workload, alternation in alternations.items()}
    own_controls = [control.name for control in evaluation.controls if control.name in controls.notes]
    return Timed(
        latency=tuple(latencies.values()),
        samples={str(workload): alternation.samples(view) for workload, alternation in alternations.items()},
        notes=(
            *(controls.notes[name] for name in own_controls),
            *unmeasured,
            *(
                note
                for workload, seen in latencies.items()
                for note in latency.notes(seen, title_of(workload, evaluation))
            ),
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
