"""From an ONNX file and a deployment to the files that a runtime loads: ONNX in its form, or what it builds of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import GraphError
from ..evidence import batches
from .calibrate import QuantizationInputs
from .deployment import Deployment
from .transform import Step, TransformedGraph, transform

Choose = Callable[[int, Mapping[int, Path]], int]
"""Which micro-batch a batch size runs in, of the models for each of them."""


@dataclass(frozen=True)
class LoweredModel:
    """A model as it is deployed: for one batch size, for several, or for any."""

    path: Path  # what the runtime loads
    files: tuple[Path, ...]  # `path`, and what belongs to it
    graph: TransformedGraph  # the ONNX that it is, or was built from
    built: Step | None = None  # zeros in what the runtime built, where it tells
    micro_batch: int | None = None  # samples of a run, where the file fixes that: a batch, or a part of one
    kept: tuple[str, ...] = ()  # layers that stayed in FP32 because INT8 makes them slower, by their weights' names

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


def lower(
    source: Path,
    stem: Path,
    deployment: Deployment,
    batch_sizes: Sequence[int],
    *,
    scratch: Path,
    cpus: Sequence[int],
    inputs: QuantizationInputs | None = None,
    choose: Choose | None = None,
) -> dict[int, LoweredModel]:
    """Lower the canonical ONNX file `source` for each of the batch sizes.

    Args:
        stem: the path of the new files up to their endings. They are `STEM-bN.*` where the target fixes batch sizes one
            by one, and else `STEM.*` for all of them.
        batch_sizes: those that will run; the first is the one that `build` calibrates with.
        scratch: a folder for what is not deployed itself.
        inputs: what quantization takes, for a precision that quantizes.
        choose: picks the micro-batch of a batch size that doesn't suit the target's kernels; without it, batches run
            whole.

    Raises:
        GraphError: the graph can't be lowered for the target.
        EngineError: the runtime can't build it.
    """
    if deployment.target.graph.batch != "each":
        model = _lower(source, stem, deployment, batch_sizes, scratch, cpus, inputs)
        return dict.fromkeys(batch_sizes, model)
    return {
        size: _in_micro_batches(source, stem, deployment, size, scratch, cpus, inputs, choose) for size in batch_sizes
    }


def micro_batches(batch_size: int, suitable: Sequence[int]) -> list[int]:
    """The micro-batches (in samples) that a batch may run in; the whole batch comes first.

    `suitable` are the batch sizes that an engine's kernels are made for, with their multiples. A batch of such a size
    is not split.
    """
    suits = any(batch_size == size or (size > 1 and batch_size % size == 0) for size in suitable)
    return [batch_size, *(() if suits else suitable)]


def _in_micro_batches(
    source: Path,
    stem: Path,
    deployment: Deployment,
    batch_size: int,
    scratch: Path,
    cpus: Sequence[int],
    inputs: QuantizationInputs | None,
    choose: Choose | None,
) -> LoweredModel:
    name = f"{stem.name}-b{batch_size}"
    candidates = micro_batches(batch_size, deployment.target.graph.micro_batches)
    best = batch_size
    if choose and len(candidates) > 1:
        models = {
            size: _lower(source, scratch / f"{name}-in-{size}", deployment, [size], scratch, cpus, inputs).path
            for size in candidates
        }
        best = choose(batch_size, models)
    model = _lower(source, stem.with_name(name), deployment, [best], scratch, cpus, inputs)
    return replace(model, micro_batch=best)


def _lower(
    source: Path,
    stem: Path,
    deployment: Deployment,
    batch_sizes: Sequence[int],
    scratch: Path,
    cpus: Sequence[int],
    inputs: QuantizationInputs | None,
) -> LoweredModel:
    form, settings = deployment.target.graph, deployment.settings
    folder, name = (scratch, f"to-build-{stem.name}") if settings.build else (stem.parent, stem.name)
    path = folder / f"{name}.onnx"
    quantization = inputs.quantization(deployment) if inputs else None
    graph = transform(
        source,
        path,
        passes=(*form.passes, *settings.passes),
        ir_version=form.ir_version,
        opset=form.opset,
        quantization=quantization,
        batch_size=batch_sizes[0],
    )
    kept = tuple(name for name in quantization.keep if inputs and name not in inputs.keep) if quantization else ()
    if settings.build:
        return _build(graph, stem, deployment, batch_sizes, cpus, inputs)
    return LoweredModel(path, (path,), graph, kept=kept)


def _build(
    graph: TransformedGraph,
    stem: Path,
    deployment: Deployment,
    batch_sizes: Sequence[int],
    cpus: Sequence[int],
    inputs: QuantizationInputs | None,
) -> LoweredModel:
    """Let the runtime make its own form. Its zeros are held against those before, as far as it counts them."""
    runtime, rows = deployment.target.runtime.name, batch_sizes[0]
    samples = inputs.samples if inputs and deployment.settings.samples else {}
    built = deployment.installed.build(
        graph.path,
        stem,
        precision=deployment.precision,
        batch_sizes=batch_sizes,
        cpus=cpus,
        inputs={name: batches.pad(array, -(-len(array) // rows) * rows) for name, array in samples.items()},
    )
    step = None
    if built.zeros is not None:
        step = Step(
            f"{runtime}'s own {deployment.precision}",
            sum(zeros for zeros, _ in built.zeros.values()),
            sum(total for _, total in built.zeros.values()),
        )
        before = graph.steps[-1]
        if step.total == before.total and step.zeros < before.zeros:
            raise GraphError(
                f"{runtime} lost {before.zeros - step.zeros} zeros when it built {deployment.precision}.",
                f"`build` in {deployment.target.folder / 'engine.py'} has to keep zeros, by symmetric weights.",
            )
    return LoweredModel(built.path, built.files, graph, step)
