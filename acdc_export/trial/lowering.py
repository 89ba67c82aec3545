"""From the canonical graph of a half to what a runtime loads: ONNX in its form, or what it builds of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .. import graph
from ..config import Target
from ..errors import GraphError
from ..evidence import batches
from ..pair import Half
from . import parts
from .setup import Deployment, Trial

RUNTIME = "runtime"
"""The value of `Graph.int8` where the runtime quantizes by itself (`build` in its engine.py)."""


@dataclass(frozen=True)
class Deployed:
    """A half as it is deployed, for one batch size or for any."""

    path: Path  # what the runtime loads
    files: tuple[Path, ...]  # that, and what belongs to it
    lowered: graph.Lowered  # the ONNX that it is, or was built from
    built: graph.Step | None = None  # zeros of what the runtime built, where it tells
    part: int | None = None  # samples in a run of it, where it fixes that: a batch, or a part of it (`parts`)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


def lower(trial: Trial, half: Half, stem: Path, deployment: Deployment | None = None) -> dict[int, Deployed]:
    """A half for each batch size, as `STEM-bN.*` where the target fixes it; otherwise one `STEM.*` for all.

    A batch size that doesn't suit the target's engine is lowered for those parts in which it is run fastest.

    Raises:
        GraphError: it can't be lowered for the target.
        EngineError: the runtime can't build it, or be opened to find the fastest parts.
    """
    where = deployment or trial.deployment
    if is_static(where.target):
        return {size: _in_parts(trial, half, where, stem, size) for size in trial.batch_sizes}
    return dict.fromkeys(trial.batch_sizes, _lower(trial, half, where, stem, trial.gated))


def _in_parts(trial: Trial, half: Half, where: Deployment, stem: Path, batch_size: int) -> Deployed:
    name = f"{stem.name}-b{batch_size}"
    best, *others = parts.candidates(batch_size, where.target.graph.parts)
    if others:
        trial.progress.say(f"Finding out in which parts {where.name} runs batches of {batch_size} fastest ({half}).")
        arms = {}
        for part in (best, *others):
            model = _lower(trial, half, where, trial.scratch / f"{name}-{where.name}-in-{part}", part).path
            arms[part] = partial(trial.open, model, batch_size, where)
        best = parts.fastest(arms, trial.inputs(batch_size), batch_size)
    return replace(_lower(trial, half, where, stem.with_name(name), best), part=best)


def is_static(target: Target) -> bool:
    """Whether the target's graphs have their batch size written into them."""
    return "static_batch" in target.graph.passes


def _lower(trial: Trial, half: Half, where: Deployment, stem: Path, batch_size: int) -> Deployed:
    builds, settings = where.scheme == RUNTIME, where.target.graph
    path = trial.scratch / f"{where.name}-{stem.name}.onnx" if builds else stem.with_name(f"{stem.name}.onnx")
    quantization = None
    if trial.integers and where.scheme and not builds:
        quantization = trial.integers.quantization(half, where.scheme)
    lowered = graph.lower(
        trial.pair.onnx(half),
        path,
        passes=settings.passes,
        ir_version=settings.ir_version,
        opset=settings.opset,
        quantization=quantization,
        batch_size=batch_size,
    )
    return _build(trial, where, lowered, stem, batch_size) if builds else Deployed(path, (path,), lowered)


def _build(trial: Trial, where: Deployment, lowered: graph.Lowered, stem: Path, batch_size: int) -> Deployed:
    """Let the runtime quantize what was lowered. Zeros are held against those before, as far as it tells."""
    assert trial.integers is not None
    built = where.seat.build(
        lowered.path,
        stem,
        precision=where.precision,
        batch_size=batch_size,
        cpus=trial.machine.cpus,
        inputs={
            name: batches.pad(array, -(-len(array) // batch_size) * batch_size)
            for name, array in trial.integers.samples.items()
        },
    )
    step = None
    if built.zeros is not None:
        step = graph.Step(
            f"{where.target.runtime.name}'s own int8",
            sum(zeros for zeros, _ in built.zeros.values()),
            sum(total for _, total in built.zeros.values()),
        )
        before = lowered.steps[-1]
        if step.total == before.total and step.zeros < before.zeros:
            raise GraphError(
                f"{where.target.runtime.name} lost {before.zeros - step.zeros} zeros when it quantized.",
                f"`build` in {where.target.folder / 'engine.py'} has to quantize weights symmetrically.",
            )
    return Deployed(built.path, built.files, lowered, step)
