"""What is found out before anything is timed: structure, parity and accuracy of both halves, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from .. import lowering
from ..data import Data
from ..errors import EngineError, ModelRefused
from ..evidence import accuracy, batches, metrics, parity
from ..evidence.accuracy import Accuracy
from ..evidence.engine import Engine, LayerTime
from ..evidence.gates import judge
from ..evidence.metrics import Facts
from ..lowering import Int8Layers, LoweredModel
from ..pair import HALVES, Half, named
from ..records.report import LayerRow, StepRow, Structure
from . import quantizing
from .setup import Evaluation, Int8

Models = Mapping[tuple[Half, int], LoweredModel]
Outputs = Mapping[tuple[Half, int], dict[str, NDArray[Any]]]

PROFILED = 20
"""Runs that a profile by layer is the mean of."""


@dataclass(frozen=True)
class StaticResults:
    """What was found out about a deployment before anything was timed."""

    evaluation: Evaluation
    models: Models
    info: dict[Half, dict[str, Any]]  # what the engine says of both halves at the gated batch size (`Engine.info`)
    outputs: Outputs  # for the pair's reference inputs
    structure: Structure
    parity: dict[str, dict[str, parity.Parity]]  # by batch size, then half
    accuracy: Accuracy | None
    quantization: Accuracy | None  # the sparse half as deployed, and as "dense" the same half in FP32
    loading: dict[str, dict[str, float]]  # seconds from starting a process to a model in it, by batch size, then half
    profile: tuple[LayerTime, ...]  # of the sparse half at the gated batch size; empty where the runtime doesn't tell
    notes: tuple[str, ...]


def examine(evaluation: Evaluation, alpha: float) -> StaticResults:
    """Lower and load both halves; find structure, parity, and accuracy, with intervals at 1 - `alpha`.

    Raises:
        GraphError: a half can't be lowered for the target.
        PairError: its ONNX holds other weights than it should.
        EngineError: the runtime refused a half, died or hung.
        UsageError: the samples don't fit the pair.
    """
    models = lower_halves(evaluation)
    evaluation.progress.say(f"Exported both halves for {evaluation.deployment.name}.")
    runs = _run(evaluation, models, alpha)
    structure = find_structure(evaluation, models, runs.info)
    return StaticResults(
        evaluation=evaluation,
        models=models,
        info=runs.info,
        outputs=runs.outputs,
        structure=structure,
        parity=check_parity(evaluation, models, runs.outputs),
        accuracy=runs.accuracy,
        quantization=runs.quantization,
        loading=runs.loading,
        profile=runs.profile,
        notes=(
            *runs.notes,
            *_accuracy_notes(evaluation, runs.accuracy),
            *runs.info["sparse"].get("notes", ()),
            *_micro_batch_notes(models),
            *_fast_path_notes(structure),
            *_uncounted_notes(evaluation, models["sparse", evaluation.gated]),
            *_int8_notes(evaluation, models, runs.accuracy, runs.quantization),
        ),
    )


def lower_halves(evaluation: Evaluation) -> dict[tuple[Half, int], LoweredModel]:
    """Both halves in the target's form: the sparse one into `model/`, the twin into `evidence/`."""
    models: dict[tuple[Half, int], LoweredModel] = {}
    for half, name in zip(HALVES, ("model/model", "evidence/dense"), strict=True):
        lowered = evaluation.lower(half, evaluation.folder / name)
        evaluation.pair.check_weights(half, lowered[evaluation.gated].graph.canonical)
        models |= {(half, size): lowered[size] for size in evaluation.batch_sizes}
    return models


@dataclass(frozen=True)
class _Runs:
    """What both halves did in the target's runtime."""

    outputs: dict[tuple[Half, int], dict[str, NDArray[Any]]]
    loading: dict[str, dict[str, float]]
    info: dict[Half, dict[str, Any]]
    accuracy: Accuracy | None = None
    quantization: Accuracy | None = None
    profile: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()


def _run(evaluation: Evaluation, models: Models, alpha: float) -> _Runs:
    """Run both halves at each batch size on the pair's reference inputs; at the gated one, on the samples as well."""
    runs = _Runs({}, {}, {})
    for size in evaluation.batch_sizes:
        with ExitStack() as stack:
            engines = _load(evaluation, models, size, stack, runs.loading.setdefault(str(size), {}))
            for half, engine in engines.items():
                runs.outputs[half, size] = batches.run(engine, evaluation.pair.reference.inputs, size)
                _check_outputs(evaluation, runs.outputs[half, size])
            if size == evaluation.gated:
                runs.info.update({half: engine.info() for half, engine in engines.items()})
                right, cost = _accuracies(evaluation, engines, stack, alpha)
                profile, notes = _profile(evaluation, engines["sparse"])  # last: an engine may die of it
                runs = replace(runs, accuracy=right, quantization=cost, profile=profile, notes=notes)
    return runs


def _load(
    evaluation: Evaluation, models: Models, batch_size: int, stack: ExitStack, seconds: dict[str, float]
) -> dict[Half, Engine]:
    """Load both halves, one after the other, and note the `seconds` that each takes."""
    engines: dict[Half, Engine] = {}
    for half in HALVES:
        start = perf_counter()
        model = models[half, batch_size].path
        engines[half] = stack.enter_context(closing(evaluation.open(model, batch_size, wait=True)))
        seconds[half] = round(perf_counter() - start, 3)
    return engines


def _accuracies(
    evaluation: Evaluation, engines: Mapping[Half, Engine], stack: ExitStack, alpha: float
) -> tuple[Accuracy | None, Accuracy | None]:
    """The sparse half beside the twin; where it is quantized, also beside itself in FP32."""
    if evaluation.samples is None:
        return None, None
    right = check_accuracy(evaluation, engines["sparse"], engines["dense"], evaluation.samples, alpha)
    if evaluation.int8 is None:
        return right, None
    unquantized = stack.enter_context(closing(quantizing.open_in_fp32(evaluation, evaluation.int8, "sparse")))
    return right, check_accuracy(evaluation, engines["sparse"], unquantized, evaluation.samples, alpha)


def _profile(evaluation: Evaluation, engine: Engine) -> tuple[tuple[LayerTime, ...], tuple[str, ...]]:
    """What each operator takes, and a note where a runtime can't tell: no verdict hangs on it."""
    try:
        return engine.profile(evaluation.inputs(evaluation.gated), PROFILED) or (), ()
    except EngineError as error:
        return (), (f"The sparse half was not profiled by operator: {error.message}",)


def _check_outputs(evaluation: Evaluation, outputs: Mapping[str, NDArray[Any]]) -> None:
    """An engine.py of one's own may give anything. Raises `ModelRefused`."""
    missing = [spec.name for spec in evaluation.pair.record.outputs if spec.name not in outputs]
    if missing:
        raise ModelRefused(
            f"{evaluation.target.runtime.name} gives {', '.join(outputs) or 'nothing'}, not {', '.join(missing)}.",
            f"`run` in {evaluation.target.folder / 'engine.py'} has to return the model's outputs by name.",
        )


def check_parity(evaluation: Evaluation, models: Models, outputs: Outputs) -> dict[str, dict[str, parity.Parity]]:
    """Both halves at every batch size against the pair's reference outputs.

    What we quantized is held against its dequantized reference: rounding is no error of the engine. What a runtime
    quantized by itself has no such reference that we know, and is held against the pair's.
    """
    pair = evaluation.pair.reference
    references = {"sparse": pair.sparse, "dense": pair.dense}
    dequantized = quantizing.dequantized_references(evaluation, models)
    parities: dict[str, dict[str, parity.Parity]] = {str(size): {} for size in evaluation.batch_sizes}
    for (half, size), arrays in outputs.items():
        expected = dequantized.get((half, size), references[half])
        tolerance = evaluation.deployment.settings.tolerance
        parities[str(size)][half] = parity.compare(arrays, expected, tolerance)
    return parities


def find_structure(evaluation: Evaluation, models: Models, info: Mapping[Half, dict[str, Any]]) -> Structure:
    """Zeros and operators of the sparse half as deployed; operators off the fast path are named."""
    supported_ops = info["sparse"].get("supported_ops")
    model = models["sparse", evaluation.gated]
    layers = {name: (layer.zeros, layer.total) for name, layer in evaluation.pair.record.pattern.layers.items()}
    positions = lowering.pruned(model.graph.canonical, layers)
    pruned = [model.counted(model.graph.weights[position]) for position in positions or ()]
    unsupported: list[str] = []
    if supported_ops is not None and supported_ops < 1.0:
        evaluation.progress.say(
            f"Only {supported_ops:.4g} of the operators are on the fast path; finding out which are not."
        )
        unsupported = lowering.unsupported(model.graph.path, evaluation.scratch, partial(_supported, evaluation))
    return Structure(
        zeros=sum(zeros for zeros, _ in pruned) if pruned else None,
        total=sum(total for _, total in pruned) if pruned else None,
        steps=tuple(StepRow(**asdict(step)) for step in (*model.graph.steps, *([model.built] if model.built else []))),
        layers=tuple(
            LayerRow(
                weight.name,
                weight.operator,
                weight.shape,
                *model.counted(weight),
                pruned=weight.position in (positions or ()),
            )
            for weight in model.graph.weights
        ),
        operators=model.graph.operators,
        supported_ops=supported_ops,
        dense_supported_ops=info["dense"].get("supported_ops"),
        unsupported=tuple(unsupported),
        int8_layers=_int8_layers(model),
        dense_int8_layers=_int8_layers(models["dense", evaluation.gated]),
    )


def _int8_layers(model: LoweredModel) -> tuple[int, int] | None:
    """How many layers our scheme quantized, of how many."""
    return (model.int8.quantized, model.int8.total) if model.int8 else None


def _supported(evaluation: Evaluation, model: Path) -> float | None:
    """The fraction of a cut graph's operators on the fast path; None where the engine refuses it."""
    try:
        with closing(evaluation.open(model, evaluation.gated)) as engine:
            supported = engine.info().get("supported_ops")
            return None if supported is None else float(supported)
    except EngineError:
        return None


def _micro_batch_notes(models: Models) -> list[str]:
    """A note for each half and batch size that does not run at once."""
    notes = []
    for (half, size), model in models.items():
        micro_batch = model.micro_batch or size
        if micro_batch != size:
            filled = ", filled up" if size % micro_batch else ""
            notes.append(f"Batch {size}: the {half} half runs in micro-batches of {micro_batch}{filled}: faster.")
    return notes


def _accuracy_notes(evaluation: Evaluation, right: Accuracy | None) -> list[str]:
    """Where the accuracy is so odd that the samples may be to blame."""
    if right is None:
        return []
    recorded = evaluation.pair.record.metrics
    return accuracy.doubts(right, {"sparse half": recorded.get("sparse", {}), "dense twin": recorded.get("dense", {})})


def _fast_path_notes(structure: Structure) -> list[str]:
    notes = []
    if structure.unsupported:
        notes.append(f"Not on the engine's fast path: {', '.join(structure.unsupported)}.")
    elif structure.supported_ops is not None and structure.supported_ops < 1.0:
        notes.append("Which operators are not on the engine's fast path could not be found out.")
    if structure.supported_ops != structure.dense_supported_ops:
        notes.append(
            f"The engine has {structure.supported_ops} of the sparse half's operators on its fast path, and "
            f"{structure.dense_supported_ops} of the twin's: the speed-up compares more than zeros."
        )
    return notes


def _int8_notes(evaluation: Evaluation, models: Models, right: Accuracy | None, cost: Accuracy | None) -> list[str]:
    """What a reader has to know of a quantized half, by a runtime or by us."""
    if evaluation.int8 is None:
        return []
    model, notes = models["sparse", evaluation.gated], list[str]()
    if model.kept:
        notes.append(f"Layers that stay in FP32, since converting takes longer than INT8 saves: {len(model.kept)}.")
    for half in HALVES:
        notes += _layer_notes(half, models[half, evaluation.gated].int8)
    if evaluation.deployment.settings.scheme is None or right is None or cost is None:
        return notes
    return notes + _costly_notes(evaluation, evaluation.int8, right, cost)


def _layer_notes(half: Half, int8: Int8Layers | None) -> list[str]:
    """Where a half is not in INT8 at all, and where the range of an activation is a guess."""
    if int8 is None:
        return []
    notes = []
    if not int8.quantized:
        notes.append(f"No layer of the {half} half is in INT8: all {int8.total} stay in FP32.")
    if int8.unvaried:
        notes.append(
            f"What goes into {', '.join(int8.unvaried)} of the {half} half is the same for all calibration samples: "
            "its INT8 range is a guess. The layer before it is dead, or the samples are too few."
        )
    return notes


def _uncounted_notes(evaluation: Evaluation, model: LoweredModel) -> list[str]:
    """Zeros that a runtime doesn't count in what it built."""
    before = model.graph.steps[-1].total
    counted = model.built.total if model.built else 0
    if counted == before or not evaluation.deployment.settings.build:
        return []
    return [
        f"{evaluation.target.runtime.name} built its own form, and counts {counted:,} of {before:,} weights: the zeros "
        "of the others were counted before that."
    ]


def _costly_notes(evaluation: Evaluation, int8: Int8, right: Accuracy, cost: Accuracy) -> list[str]:
    """Where a gate on accuracy fails, the layers whose INT8 costs most."""
    measured = metrics.values(Facts(accuracy=right, quantization=cost))  # gates on all else are not measured here
    if all(judge(gate, measured).status != "fail" for gate in evaluation.gates):
        return []
    layers = quantizing.costliest(evaluation, int8)
    if not layers:  # none is in INT8
        return []
    return [f"The layers whose INT8 costs most: {', '.join(layers)}. `--keep-fp32 {layers[0]}` leaves one in FP32."]


def check_accuracy(evaluation: Evaluation, sparse: Engine, dense: Engine, data: Data, alpha: float) -> Accuracy:
    """Judge two engines on the same samples, at the gated batch size."""
    size = 8 * evaluation.gated  # samples read at once; the engines get them in their own batches
    judged = next(spec for spec in evaluation.pair.record.outputs if spec.name == evaluation.judged)
    expected = replace(evaluation.pair.expected, judged=judged)
    with evaluation.progress.task("accuracy", -(-data.count // size) if data.count else 0) as advance:
        return accuracy.measure(
            sparse,
            dense,
            _advancing(named(data, expected, size), advance),
            output=evaluation.judged,
            batch_size=evaluation.gated,
            alpha=alpha,
        )


def _advancing(stream: Iterable[Any], advance: Callable[..., None]) -> Iterator[Any]:
    for item in stream:
        yield item
        advance()
