"""From an ONNX file and a deployment to the files that a runtime loads: ONNX in its form, or what it builds of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import GraphError
from ..evidence import batches
from ..records.inspection import WeightAudit
from . import quantize
from .calibrate import QuantizationInputs
from .deployment import Deployment
from .quantize import Quantization
from .transform import Step, TransformedGraph, transform

Zeros = Mapping[str, tuple[int, int]]
"""The number of zeros and of all elements, by the weight's name."""

Choose = Callable[[int, Mapping[int, Path]], int]
"""Which micro-batch a batch size runs in, of the models for each of them."""


@dataclass(frozen=True)
class Int8Layers:
    """What became of the layers of a graph that our schemes quantized."""

    quantized: int
    total: int
    unvaried: tuple[str, ...] = ()  # those in INT8 whose activation is the same for all samples, by weights' names


@dataclass(frozen=True)
class LoweredModel:
    """A model as it is deployed: for one batch size, for several, or for any."""

    path: Path  # what the runtime loads
    files: tuple[Path, ...]  # `path`, and what one ships with it
    graph: TransformedGraph  # the ONNX that it is, or was built from
    built: Step | None = None  # zeros in what the runtime built, where it tells,
    zeros: Zeros = field(default_factory=dict)  # and the same of each weight, by names of the runtime's
    micro_batch: int | None = None  # samples of a run, where the file fixes that: a batch, or a part of one
    kept: tuple[str, ...] = ()  # layers that stayed in FP32 because INT8 makes them slower, by their weights' names
    int8: Int8Layers | None = None  # None where our schemes quantize nothing

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)

    def counted(self, weight: WeightAudit) -> tuple[int, int]:
        """Zeros of a weight of `graph`, and of how many: as deployed, where the runtime built it and has its name."""
        return self.zeros.get(weight.name, (weight.zeros, weight.total))


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
    way = _Way(source, deployment, scratch, tuple(cpus), inputs)
    if deployment.target.graph.batch != "each":
        return dict.fromkeys(batch_sizes, way.lower(stem, batch_sizes))
    return {size: way.lower_in_micro_batches(stem, size, choose) for size in batch_sizes}


def micro_batches(batch_size: int, suitable: Sequence[int]) -> list[int]:
    """The micro-batches (in samples) that a batch may run in; the whole batch comes first.

    `suitable` are the batch sizes that an engine's kernels are made for, with their multiples. A batch of such a size
    is not split.
    """
    suits = any(batch_size == size or (size > 1 and batch_size % size == 0) for size in suitable)
    return [batch_size, *(() if suits else suitable)]


def _layers(quantization: Quantization | None) -> Int8Layers | None:
    if quantization is None:
        return None
    names = quantize.layer_names(quantization.calibrated.folded)
    chosen = [name for name in names if name not in quantization.keep]
    unvaried = quantization.calibrated.calibration.unvaried
    return Int8Layers(len(chosen), len(names), tuple(name for name in chosen if name in unvaried))


@dataclass(frozen=True)
class _Way:
    """The way of one ONNX file to a deployment; `lower` describes the fields."""

    source: Path
    deployment: Deployment
    scratch: Path
    cpus: tuple[int, ...]
    inputs: QuantizationInputs | None

    def lower_in_micro_batches(self, stem: Path, batch_size: int, choose: Choose | None) -> LoweredModel:
        """Lower the file for one batch size, in the micro-batches that are chosen for it."""
        name, best = f"{stem.name}-b{batch_size}", batch_size
        candidates = micro_batches(batch_size, self.deployment.target.graph.micro_batches)
        if choose and len(candidates) > 1:
            models = {size: self.lower(self.scratch / f"{name}-in-{size}", [size]).path for size in candidates}
            best = choose(batch_size, models)
        return replace(self.lower(stem.with_name(name), [best]), micro_batch=best)

    def lower(self, stem: Path, batch_sizes: Sequence[int]) -> LoweredModel:
        """Lower the file into one model for these batch sizes."""
        form, settings = self.deployment.target.graph, self.deployment.settings
        path = self.scratch / f"to-build-{stem.name}.onnx" if settings.build else stem.with_name(f"{stem.name}.onnx")
        quantization = self.inputs.quantization(self.deployment) if self.inputs else None
        graph = transform(
            self.source,
            path,
            passes=(*form.passes, *settings.passes),
            ir_version=form.ir_version,
            opset=form.opset,
            quantization=quantization,
            batch_size=batch_sizes[0],
        )
        asked = self.inputs.keep if self.inputs else ()
        slower = tuple(name for name in quantization.keep if name not in asked) if quantization else ()
        if settings.build:
            return replace(self._build(graph, stem, batch_sizes), kept=slower, int8=_layers(quantization))
        return LoweredModel(path, (path,), graph, kept=slower, int8=_layers(quantization))

    def _build(self, graph: TransformedGraph, stem: Path, batch_sizes: Sequence[int]) -> LoweredModel:
        """Let the runtime make its own form. Its zeros are held against those before, as far as it counts them."""
        target, precision, rows = self.deployment.target, self.deployment.precision, batch_sizes[0]
        samples = self.inputs.samples if self.inputs and self.deployment.settings.samples else {}
        built = self.deployment.installed.build(
            graph.path,
            stem,
            precision=precision,
            batch_sizes=batch_sizes,
            cpus=self.cpus,
            inputs={name: batches.pad(array, -(-len(array) // rows) * rows) for name, array in samples.items()},
        )
        if built.zeros is None:
            return LoweredModel(built.path, built.deployed, graph)
        step = Step(
            f"{target.runtime.name}'s own {precision}",
            sum(zeros for zeros, _ in built.zeros.values()),
            sum(total for _, total in built.zeros.values()),
        )
        model = LoweredModel(built.path, built.deployed, graph, step, built.zeros)
        self._check_zeros(model, step)
        return model

    def _check_zeros(self, model: LoweredModel, built: Step) -> None:
        """Rule 2 of the house, of what a runtime built: in each weight that it has the name of, and in all together."""
        target, before = self.deployment.target, model.graph.steps[-1]
        lost = {weight.name: weight.zeros - model.counted(weight)[0] for weight in model.graph.weights}
        lost = {f" of the weight {name}": count for name, count in lost.items() if count > 0}
        if not lost and built.total == before.total and built.zeros < before.zeros:
            lost = {"": before.zeros - built.zeros}
        for where, count in lost.items():
            raise GraphError(
                f"{target.runtime.name} lost {count} zeros{where} when it built {self.deployment.precision}.",
                f"`build` in {target.folder / 'engine.py'} has to keep zeros, by symmetric weights.",
            )
