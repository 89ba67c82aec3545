"""From the canonical graph of a half to what a runtime loads: ONNX in its form, or what it builds of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .. import lowering
from ..config import Target
from ..errors import GraphError
from ..evidence import batches
from ..pair import Half
from . import micro_batches
from .setup import Deployment, Evaluation

RUNTIME = "runtime"
"""The value of `Graph.int8` where the runtime quantizes by itself (`build` in its engine.py)."""


@dataclass(frozen=True)
class Deployed:
    """A half as it is deployed, for one batch size or for any."""

    path: Path  # what the runtime loads
    files: tuple[Path, ...]  # that, and what belongs to it
    lowered: lowering.Lowered  # the ONNX that it is, or was built from
    built: lowering.Step | None = None  # zeros of what the runtime built, where it tells
    part: int | None = None  # samples in a run of it, where it fixes that: a batch, or a part of it (`parts`)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


def lower(evaluation: Evaluation, half: Half, stem: Path, deployment: Deployment | None = None) -> dict[int, Deployed]:
    """A half for each batch size, as `STEM-bN.*` where the target fixes it; otherwise one `STEM.*` for all.

    A batch size that doesn't suit the target's engine is lowered for those parts in which it is run fastest.

    Raises:
        GraphError: it can't be lowered for the target.
        EngineError: the runtime can't build it, or be opened to find the fastest parts.
    """
    where = deployment or evaluation.deployment
    if is_static(where.target):
        return {size: _in_parts(evaluation, half, where, stem, size) for size in evaluation.batch_sizes}
    return dict.fromkeys(evaluation.batch_sizes, _lower(evaluation, half, where, stem, evaluation.gated))


def _in_parts(evaluation: Evaluation, half: Half, where: Deployment, stem: Path, batch_size: int) -> Deployed:
    name = f"{stem.name}-b{batch_size}"
    best, *others = micro_batches.candidates(batch_size, where.target.graph.parts)
    if others:
        evaluation.progress.say(
            f"Finding out in which parts {where.name} runs batches of {batch_size} fastest ({half})."
        )
        variants = {}
        for part in (best, *others):
            model = _lower(evaluation, half, where, evaluation.scratch / f"{name}-{where.name}-in-{part}", part).path
            variants[part] = partial(evaluation.open, model, batch_size, where)
        best = micro_batches.fastest(variants, evaluation.inputs(batch_size), batch_size)
    return replace(_lower(evaluation, half, where, stem.with_name(name), best), part=best)


def is_static(target: Target) -> bool:
    """Whether the target's graphs have their batch size written into them."""
    return "static_batch" in target.graph.passes


def _lower(evaluation: Evaluation, half: Half, where: Deployment, stem: Path, batch_size: int) -> Deployed:
    builds, settings = where.scheme == RUNTIME, where.target.graph
    path = evaluation.scratch / f"{where.name}-{stem.name}.onnx" if builds else stem.with_name(f"{stem.name}.onnx")
    quantization = None
    if evaluation.integers and where.scheme and not builds:
        quantization = evaluation.integers.quantization(half, where.scheme)
    lowered = lowering.lower(
        evaluation.pair.onnx(half),
        path,
        passes=settings.passes,
        ir_version=settings.ir_version,
        opset=settings.opset,
        quantization=quantization,
        batch_size=batch_size,
    )
    return _build(evaluation, where, lowered, stem, batch_size) if builds else Deployed(path, (path,), lowered)


def _build(
    evaluation: Evaluation, where: Deployment, lowered: lowering.Lowered, stem: Path, batch_size: int
) -> Deployed:
    """Let the runtime quantize what was lowered. Zeros are held against those before, as far as it tells."""
    assert evaluation.integers is not None
    built = where.installed.build(
        lowered.path,
        stem,
        precision=where.precision,
        batch_size=batch_size,
        cpus=evaluation.machine.cpus,
        inputs={
            name: batches.pad(array, -(-len(array) // batch_size) * batch_size)
            for name, array in evaluation.integers.samples.items()
        },
    )
    step = None
    if built.zeros is not None:
        step = lowering.Step(
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
