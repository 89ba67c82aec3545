"""A trial, but for its timing: both halves are lowered, loaded and examined, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from .. import graph
from ..data import Data
from ..errors import EngineError, ModelRefused, PairError
from ..evidence import accuracy, batches, parity
from ..evidence.accuracy import Accuracy
from ..evidence.engine import Engine
from ..evidence.gates import judge
from ..pair import HALVES, Half, Pair, named
from ..report import LayerRow, StepRow, Structure
from . import quantizing
from .lowering import RUNTIME, Deployed, lower
from .setup import Integers, Trial

Outputs = Mapping[tuple[Half, int], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Examined:
    """What was found out about a trial before anything was timed."""

    trial: Trial
    models: Mapping[tuple[Half, int], Deployed]
    info: dict[Half, dict[str, Any]]  # what the engine says of both halves at the gated batch size (`Engine.info`)
    outputs: Outputs  # for the pair's reference inputs
    structure: Structure
    parity: dict[str, dict[str, parity.Parity]]  # by batch size, then half
    accuracy: Accuracy | None
    quantization: Accuracy | None  # the sparse half in integers, and as "dense" the same in float
    loading: dict[str, dict[str, float]]  # seconds from starting a process to a model in it, by batch size, then half
    notes: tuple[str, ...]


def examine(trial: Trial, alpha: float) -> Examined:
    """Lower and load both halves; find structure, parity, and accuracy, with intervals at 1 - `alpha`.

    Raises:
        GraphError: a half can't be lowered for the target.
        PairError: its ONNX holds other weights than it should.
        EngineError: the runtime refused a half, died or hung.
        UsageError: the samples don't fit the pair.
    """
    models = deploy(trial)
    trial.progress.say(f"Exported both halves for {trial.deployment.name}.")
    ran = _run(trial, models, alpha)
    found = structure(trial, models, ran.info)
    return Examined(
        trial=trial,
        models=models,
        info=ran.info,
        outputs=ran.outputs,
        structure=found,
        parity=check_parity(trial, models, ran.outputs),
        accuracy=ran.accuracy,
        quantization=ran.quantization,
        loading=ran.loading,
        notes=(
            *_part_notes(models),
            *_fast_path_notes(found),
            *_integer_notes(trial, models, ran.accuracy, ran.quantization),
        ),
    )


def deploy(trial: Trial) -> dict[tuple[Half, int], Deployed]:
    """Both halves in the target's form: the sparse one into `model/`, the twin into `evidence/`."""
    found: dict[tuple[Half, int], Deployed] = {}
    for half, name in zip(HALVES, ("model/model", "evidence/dense"), strict=True):
        deployed = lower(trial, half, trial.folder / name)
        _check_canonical(trial.pair, half, deployed[trial.gated].lowered)
        found |= {(half, size): model for size, model in deployed.items()}
    return found


def _check_canonical(pair: Pair, half: Half, lowered: graph.Lowered) -> None:
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


def _run(trial: Trial, models: Mapping[tuple[Half, int], Deployed], alpha: float) -> _Ran:
    """Run both halves at each batch size on the pair's reference inputs; at the gated one, on the samples as well."""
    ran = _Ran({}, {}, {})
    for size in trial.batch_sizes:
        with ExitStack() as stack:
            opened: dict[Half, Engine] = {}
            ran.loading[str(size)] = {}
            for half in HALVES:
                start = perf_counter()
                opened[half] = stack.enter_context(closing(trial.open(models[half, size].path, size, wait=True)))
                ran.loading[str(size)][half] = round(perf_counter() - start, 3)
            for half, engine in opened.items():
                ran.outputs[half, size] = batches.run(engine, trial.pair.reference.inputs, size)
                _check_outputs(trial, ran.outputs[half, size])
            if size != trial.gated:
                continue
            ran.info = {half: engine.info() for half, engine in opened.items()}
            if trial.samples:
                ran.accuracy = check_accuracy(trial, opened["sparse"], opened["dense"], trial.samples, alpha)
            if trial.samples and trial.integers:
                engine = stack.enter_context(closing(quantizing.floating(trial, trial.integers, "sparse")))
                ran.quantization = check_accuracy(trial, opened["sparse"], engine, trial.samples, alpha)
    return ran


def _check_outputs(trial: Trial, outputs: Mapping[str, NDArray[Any]]) -> None:
    """An engine.py of one's own may give anything. Raises `ModelRefused`."""
    missing = [spec.name for spec in trial.pair.record.outputs if spec.name not in outputs]
    if missing:
        raise ModelRefused(
            f"{trial.target.runtime.name} gives {', '.join(outputs) or 'nothing'}, not {', '.join(missing)}.",
            f"`run` in {trial.target.folder / 'engine.py'} has to return the model's outputs by name.",
        )


def check_parity(
    trial: Trial, models: dict[tuple[Half, int], Deployed], outputs: Outputs
) -> dict[str, dict[str, parity.Parity]]:
    """Both halves at every batch size against their eager logits; our integers against themselves in exact arithmetic.

    What a runtime quantized by itself has no exact form that we know: it is held against the eager logits, too.
    """
    eager = {"sparse": trial.pair.reference.sparse, "dense": trial.pair.reference.dense}
    exact = quantizing.exact(trial, models)
    found: dict[str, dict[str, parity.Parity]] = {str(size): {} for size in trial.batch_sizes}
    for (half, size), arrays in outputs.items():
        expected = exact.get((half, size), eager[half])
        found[str(size)][half] = parity.compare(arrays, expected, trial.deployment.tolerance)
    return found


def structure(
    trial: Trial, models: Mapping[tuple[Half, int], Deployed], info: Mapping[Half, dict[str, Any]]
) -> Structure:
    """Zeros and operators of the sparse half as deployed; operators off the fast path are named."""
    supported_ops = info["sparse"].get("supported_ops")
    model = models["sparse", trial.gated]
    lowered = model.lowered
    layers = {name: (layer.zeros, layer.total) for name, layer in trial.pair.record.pattern.layers.items()}
    positions = graph.pruned(lowered.canonical, layers)
    mine = [lowered.weights[at] for at in positions or ()]
    unsupported: list[str] = []
    if supported_ops is not None and supported_ops < 1.0:
        trial.progress.say(
            f"Only {supported_ops:.4g} of the operators are on the fast path; finding out which are not."
        )
        unsupported = graph.unsupported(lowered.path, trial.scratch, partial(_supported, trial))
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
    trial: Trial, models: Mapping[tuple[Half, int], Deployed], right: Accuracy | None, cost: Accuracy | None
) -> list[str]:
    """What is to be said of integers, a runtime's own or ours."""
    if trial.integers is None or trial.deployment.scheme is None:
        return []
    if trial.deployment.scheme == RUNTIME:
        return _untold_notes(trial, models["sparse", trial.gated])
    notes = []
    quantization = trial.integers.quantization("sparse", trial.deployment.scheme)
    if floats := len(quantization.keep) - len(trial.integers.keep):
        notes.append(f"Layers that stay in float32, since converting takes longer than integers save: {floats}.")
    return notes + (_costly_notes(trial, trial.integers, right, cost) if right and cost else [])


def _untold_notes(trial: Trial, model: Deployed) -> list[str]:
    """Zeros that a runtime doesn't tell of."""
    before = model.lowered.steps[-1].total
    told = model.built.total if model.built else 0
    if told == before:
        return []
    return [
        f"{trial.target.runtime.name} quantized by itself, and tells of {told:,} of {before:,} weights: zeros were "
        "counted before that."
    ]


def _costly_notes(trial: Trial, integers: Integers, right: Accuracy, cost: Accuracy) -> list[str]:
    """Where a gate on accuracy fails, which layers' integers cost most."""
    measured = {"accuracy.drop": right.drop, "accuracy.sparse": right.sparse, "quantization.drop": cost.drop}
    if all(judge(gate, measured).status != "fail" for gate in trial.gates if gate.metric in measured):
        return []
    layers = quantizing.costliest(trial, integers)
    return [f"The layers whose integers cost most: {', '.join(layers)}. `--keep-fp32 {layers[0]}` leaves one in float."]


def _supported(trial: Trial, model: Path) -> float:
    """The fraction of a cut graph's operators on the fast path; 0 where the engine doesn't even take it."""
    try:
        with closing(trial.open(model, trial.gated)) as engine:
            return float(engine.info().get("supported_ops", 1.0))
    except EngineError:
        return 0.0


def check_accuracy(trial: Trial, sparse: Engine, dense: Engine, data: Data, alpha: float) -> Accuracy:
    """Both on the same samples, at the gated batch size."""
    size = 8 * trial.gated  # samples read at once; the engines get them in their own batches
    with trial.progress.task("accuracy", -(-data.count // size) if data.count else 0) as advance:
        return accuracy.measure(
            sparse,
            dense,
            _advancing(named(data, trial.pair.record.inputs, size), advance),
            output=trial.pair.record.outputs[0].name,
            batch_size=trial.gated,
            alpha=alpha,
        )


def _advancing(stream: Iterable[Any], advance: Any) -> Iterator[Any]:
    for item in stream:
        yield item
        advance()
