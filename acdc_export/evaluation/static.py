"""A evaluation, but for its timing: both halves are lowered, loaded and examined, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from .. import lowering
from ..data import Data
from ..errors import EngineError, ModelRefused, PairError
from ..evidence import accuracy, batches, metrics, parity
from ..evidence.accuracy import Accuracy
from ..evidence.engine import Engine
from ..evidence.gates import judge
from ..evidence.metrics import Facts
from ..pair import HALVES, Half, Pair, named
from ..records.report import LayerRow, StepRow, Structure
from . import quantizing
from .lowering import RUNTIME, Deployed, lower
from .setup import Evaluation, Integers

Outputs = Mapping[tuple[Half, int], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class StaticResults:
    """What was found out about a evaluation before anything was timed."""

    evaluation: Evaluation
    models: Mapping[tuple[Half, int], Deployed]
    info: dict[Half, dict[str, Any]]  # what the engine says of both halves at the gated batch size (`Engine.info`)
    outputs: Outputs  # for the pair's reference inputs
    structure: Structure
    parity: dict[str, dict[str, parity.Parity]]  # by batch size, then half
    accuracy: Accuracy | None
    quantization: Accuracy | None  # the sparse half in integers, and as "dense" the same in float
    loading: dict[str, dict[str, float]]  # seconds from starting a process to a model in it, by batch size, then half
    notes: tuple[str, ...]


def examine(evaluation: Evaluation, alpha: float) -> StaticResults:
    """Lower and load both halves; find structure, parity, and accuracy, with intervals at 1 - `alpha`.

    Raises:
        GraphError: a half can't be lowered for the target.
        PairError: its ONNX holds other weights than it should.
        EngineError: the runtime refused a half, died or hung.
        UsageError: the samples don't fit the pair.
    """
    models = deploy(evaluation)
    evaluation.progress.say(f"Exported both halves for {evaluation.deployment.name}.")
    ran = _run(evaluation, models, alpha)
    found = structure(evaluation, models, ran.info)
    return StaticResults(
        evaluation=evaluation,
        models=models,
        info=ran.info,
        outputs=ran.outputs,
        structure=found,
        parity=check_parity(evaluation, models, ran.outputs),
        accuracy=ran.accuracy,
        quantization=ran.quantization,
        loading=ran.loading,
        notes=(
            *_part_notes(models),
            *_fast_path_notes(found),
            *_integer_notes(evaluation, models, ran.accuracy, ran.quantization),
        ),
    )


def deploy(evaluation: Evaluation) -> dict[tuple[Half, int], Deployed]:
    """Both halves in the target's form: the sparse one into `model/`, the twin into `evidence/`."""
    found: dict[tuple[Half, int], Deployed] = {}
    for half, name in zip(HALVES, ("model/model", "evidence/dense"), strict=True):
        deployed = lower(evaluation, half, evaluation.folder / name)
        _check_canonical(evaluation.pair, half, deployed[evaluation.gated].lowered)
        found |= {(half, size): model for size, model in deployed.items()}
    return found


def _check_canonical(pair: Pair, half: Half, lowered: lowering.Lowered) -> None:
    """What `Pair.load` asks of the state dicts, asked of the ONNX, which it can't read. Raises `PairError`."""
    path, layers = pair.onnx(half), pair.record.pattern.layers
    for weight in lowered.canonical:
        problem = None
        if not weight.finite:
            problem = "holds NaN or infinity"
        elif weight.name in layers and weight.zeros == weight.total:
            problem = "is zero throughout"
        elif half == "sparse" and weight.name in layers and weight.zeros < layers[weight.name].zeros:
            problem = f"has {weight.zeros} zeros, but pair.json says {layers[weight.name].zeros}"
        if problem:
            raise PairError(f"{path}: {weight.name} {problem}.", "Write the pair again from its training.")


@dataclass
class _Ran:
    """What both halves did in the target's runtime."""

    outputs: dict[tuple[Half, int], dict[str, NDArray[Any]]]
    loading: dict[str, dict[str, float]]
    info: dict[Half, dict[str, Any]]
    accuracy: Accuracy | None = None
    quantization: Accuracy | None = None


def _run(evaluation: Evaluation, models: Mapping[tuple[Half, int], Deployed], alpha: float) -> _Ran:
    """Run both halves at each batch size on the pair's reference inputs; at the gated one, on the samples as well."""
    ran = _Ran({}, {}, {})
    for size in evaluation.batch_sizes:
        with ExitStack() as stack:
            opened: dict[Half, Engine] = {}
            ran.loading[str(size)] = {}
            for half in HALVES:
                start = perf_counter()
                opened[half] = stack.enter_context(closing(evaluation.open(models[half, size].path, size, wait=True)))
                ran.loading[str(size)][half] = round(perf_counter() - start, 3)
            for half, engine in opened.items():
                ran.outputs[half, size] = batches.run(engine, evaluation.pair.reference.inputs, size)
                _check_outputs(evaluation, ran.outputs[half, size])
            if size != evaluation.gated:
                continue
            ran.info = {half: engine.info() for half, engine in opened.items()}
            if evaluation.samples:
                ran.accuracy = check_accuracy(evaluation, opened["sparse"], opened["dense"], evaluation.samples, alpha)
            if evaluation.samples and evaluation.integers:
                engine = stack.enter_context(closing(quantizing.floating(evaluation, evaluation.integers, "sparse")))
                ran.quantization = check_accuracy(evaluation, opened["sparse"], engine, evaluation.samples, alpha)
    return ran


def _check_outputs(evaluation: Evaluation, outputs: Mapping[str, NDArray[Any]]) -> None:
    """An engine.py of one's own may give anything. Raises `ModelRefused`."""
    missing = [spec.name for spec in evaluation.pair.record.outputs if spec.name not in outputs]
    if missing:
        raise ModelRefused(
            f"{evaluation.target.runtime.name} gives {', '.join(outputs) or 'nothing'}, not {', '.join(missing)}.",
            f"`run` in {evaluation.target.folder / 'engine.py'} has to return the model's outputs by name.",
        )


def check_parity(
    evaluation: Evaluation, models: dict[tuple[Half, int], Deployed], outputs: Outputs
) -> dict[str, dict[str, parity.Parity]]:
    """Both halves at every batch size against their eager logits; our integers against themselves in exact arithmetic.

    What a runtime quantized by itself has no exact form that we know: it is held against the eager logits, too.
    """
    eager = {"sparse": evaluation.pair.reference.sparse, "dense": evaluation.pair.reference.dense}
    exact = quantizing.exact(evaluation, models)
    found: dict[str, dict[str, parity.Parity]] = {str(size): {} for size in evaluation.batch_sizes}
    for (half, size), arrays in outputs.items():
        expected = exact.get((half, size), eager[half])
        found[str(size)][half] = parity.compare(arrays, expected, evaluation.deployment.tolerance)
    return found


def structure(
    evaluation: Evaluation, models: Mapping[tuple[Half, int], Deployed], info: Mapping[Half, dict[str, Any]]
) -> Structure:
    """Zeros and operators of the sparse half as deployed; operators off the fast path are named."""
    supported_ops = info["sparse"].get("supported_ops")
    model = models["sparse", evaluation.gated]
    lowered = model.lowered
    layers = {name: (layer.zeros, layer.total) for name, layer in evaluation.pair.record.pattern.layers.items()}
    positions = lowering.pruned(lowered.canonical, layers)
    mine = [lowered.weights[at] for at in positions or ()]
    unsupported: list[str] = []
    if supported_ops is not None and supported_ops < 1.0:
        evaluation.progress.say(
            f"Only {supported_ops:.4g} of the operators are on the fast path; finding out which are not."
        )
        unsupported = lowering.unsupported(lowered.path, evaluation.scratch, partial(_supported, evaluation))
    return Structure(
        zeros=sum(weight.zeros for weight in mine) if mine else None,
        total=sum(weight.total for weight in mine) if mine else None,
        steps=tuple(StepRow(**asdict(step)) for step in (*lowered.steps, *([model.built] if model.built else []))),
        layers=tuple(
            LayerRow(
                weight.name,
                weight.operator,
                weight.shape,
                weight.zeros,
                weight.total,
                pruned=weight.position in (positions or ()),
            )
            for weight in lowered.weights
        ),
        operators=lowered.operators,
        supported_ops=supported_ops,
        dense_supported_ops=info["dense"].get("supported_ops"),
        unsupported=tuple(unsupported),
    )


def _part_notes(models: Mapping[tuple[Half, int], Deployed]) -> list[str]:
    """Where a batch is not run at once."""
    notes = []
    for (half, size), model in models.items():
        part = model.part or size
        if part != size:
            filled = ", filled up" if size % part else ""
            notes.append(f"Batch {size}: the {half} half is run in parts of {part}{filled}, which is faster.")
    return notes


def _fast_path_notes(found: Structure) -> list[str]:
    notes = []
    if found.unsupported:
        notes.append(f"Not on the engine's fast path: {', '.join(found.unsupported)}.")
    elif found.supported_ops is not None and found.supported_ops < 1.0:
        notes.append("Which operators are not on the engine's fast path could not be found out.")
    if found.supported_ops != found.dense_supported_ops:
        notes.append(
            f"The engine has {found.supported_ops} of the sparse half's operators on its fast path, and "
            f"{found.dense_supported_ops} of the twin's: the speed-up compares more than zeros."
        )
    return notes


def _integer_notes(
    evaluation: Evaluation, models: Mapping[tuple[Half, int], Deployed], right: Accuracy | None, cost: Accuracy | None
) -> list[str]:
    """What is to be said of integers, a runtime's own or ours."""
    if evaluation.integers is None or evaluation.deployment.scheme is None:
        return []
    if evaluation.deployment.scheme == RUNTIME:
        return _untold_notes(evaluation, models["sparse", evaluation.gated])
    notes = []
    quantization = evaluation.integers.quantization("sparse", evaluation.deployment.scheme)
    if floats := len(quantization.keep) - len(evaluation.integers.keep):
        notes.append(f"Layers that stay in float32, since converting takes longer than integers save: {floats}.")
    return notes + (_costly_notes(evaluation, evaluation.integers, right, cost) if right and cost else [])


def _untold_notes(evaluation: Evaluation, model: Deployed) -> list[str]:
    """Zeros that a runtime doesn't tell of."""
    before = model.lowered.steps[-1].total
    told = model.built.total if model.built else 0
    if told == before:
        return []
    return [
        f"{evaluation.target.runtime.name} quantized by itself, and tells of {told:,} of {before:,} weights: zeros were "
        "counted before that."
    ]


def _costly_notes(evaluation: Evaluation, integers: Integers, right: Accuracy, cost: Accuracy) -> list[str]:
    """Where a gate on accuracy fails, which layers' integers cost most."""
    measured = metrics.values(Facts(accuracy=right, quantization=cost))  # gates on all else are not measured here
    if all(judge(gate, measured).status != "fail" for gate in evaluation.gates):
        return []
    layers = quantizing.costliest(evaluation, integers)
    return [f"The layers whose integers cost most: {', '.join(layers)}. `--keep-fp32 {layers[0]}` leaves one in float."]


def _supported(evaluation: Evaluation, model: Path) -> float:
    """The fraction of a cut graph's operators on the fast path; 0 where the engine doesn't even take it."""
    try:
        with closing(evaluation.open(model, evaluation.gated)) as engine:
            return float(engine.info().get("supported_ops", 1.0))
    except EngineError:
        return 0.0


def check_accuracy(evaluation: Evaluation, sparse: Engine, dense: Engine, data: Data, alpha: float) -> Accuracy:
    """Both on the same samples, at the gated batch size."""
    size = 8 * evaluation.gated  # samples read at once; the engines get them in their own batches
    with evaluation.progress.task("accuracy", -(-data.count // size) if data.count else 0) as advance:
        return accuracy.measure(
            sparse,
            dense,
            _advancing(named(data, evaluation.pair.record.inputs, size), advance),
            output=evaluation.pair.record.outputs[0].name,
            batch_size=evaluation.gated,
            alpha=alpha,
        )


def _advancing(stream: Iterable[Any], advance: Any) -> Iterator[Any]:
    for item in stream:
        yield item
        advance()
