"""The steps of a trial, in their order: both halves go through each of them, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import graph
from ..config import Target
from ..data import Data
from ..engines import Seat
from ..errors import EngineError, GraphError, ModelRefused, PairError
from ..evidence import accuracy, batches, latency, parity, stats
from ..evidence.accuracy import Accuracy
from ..evidence.engine import Engine
from ..evidence.gates import Gate, judge, sampled, settled
from ..evidence.latency import Samples
from ..pair import HALVES, Half, Pair, named
from ..report import LayerRow, StepRow, Structure
from . import quantizing, timing
from .setup import Trial

Models = Mapping[tuple[Half, int], graph.Lowered]
Outputs = Mapping[tuple[Half, int], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Findings:
    """All that was found out."""

    models: Models
    info: dict[Half, dict[str, Any]]  # what the engine says of both halves at the gated batch size (`Engine.info`)
    outputs: Outputs  # for the pair's reference inputs
    structure: Structure
    parity: dict[str, dict[str, parity.Parity]]  # by batch size, then half
    accuracy: Accuracy | None
    quantization: Accuracy | None  # the sparse half in integers, and as "dense" the same in float
    quantizations: Mapping[Half, graph.Quantization]
    latency: dict[int, latency.Latency]  # by batch size
    samples: dict[int, Samples]
    notes: tuple[str, ...]


def conduct(trial: Trial, samples: Data | None, plan: latency.Plan, gates: Sequence[Gate]) -> Findings:
    """Lower, load, and measure: structure, parity, accuracy on `samples`, latency until `gates` are decided.

    Raises:
        GraphError: a half can't be lowered for the target.
        EngineError: the runtime refused a half, died or hung.
        UsageError: the samples don't fit the pair.
    """
    quantizations = quantizing.prepare(trial)
    models = lower(trial, quantizations)
    trial.progress.say(f"Exported both halves for {trial.seat.target.name}.")
    alpha = stats.ALPHA / max(1, sampled(gates))
    outputs, info, found_accuracy, cost = run_halves(trial, models, samples, alpha)
    found_structure = structure(trial, models, info)
    measured, raw, notes = measure_latency(trial, models, plan, gates, alpha)
    notes += _fast_path_notes(found_structure)
    notes += _integer_notes(trial, quantizations, gates, found_accuracy, cost)
    return Findings(
        models=models,
        info=info,
        outputs=outputs,
        structure=found_structure,
        parity=check_parity(trial, models, outputs),
        accuracy=found_accuracy,
        quantization=cost,
        quantizations=quantizations,
        latency=measured,
        samples=raw,
        notes=tuple(notes),
    )


def lower(trial: Trial, quantizations: Mapping[Half, graph.Quantization]) -> Models:
    """Both halves in the target's form: the sparse one into `model/`, the twin into `evidence/`."""
    found: dict[tuple[Half, int], graph.Lowered] = {}
    for half, name in zip(HALVES, ("model/model", "evidence/dense"), strict=True):
        lowered = lower_half(
            trial.pair.onnx(half),
            trial.folder / name,
            trial.seat.target,
            trial.batch_sizes,
            quantizations.get(half),
        )
        _check_canonical(trial.pair, half, lowered[trial.gated])
        found |= {(half, size): model for size, model in lowered.items()}
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


def lower_half(
    source: Path,
    stem: Path,
    target: Target,
    batch_sizes: tuple[int, ...],
    quantization: graph.Quantization | None = None,
) -> dict[int, graph.Lowered]:
    """A file for each batch size, `STEM-bN.onnx`, where the target fixes it; otherwise one `STEM.onnx` for all."""
    settings = target.graph
    write = partial(
        graph.lower,
        source,
        passes=settings.passes,
        ir_version=settings.ir_version,
        opset=settings.opset,
        quantization=quantization,
    )
    if is_static(target):
        return {size: write(stem.with_name(f"{stem.name}-b{size}.onnx"), batch_size=size) for size in batch_sizes}
    return dict.fromkeys(batch_sizes, write(stem.with_name(f"{stem.name}.onnx"), batch_size=batch_sizes[0]))


def is_static(target: Target) -> bool:
    """Whether the target's graphs have their batch size written into them."""
    return "static_batch" in target.graph.passes


def run_halves(
    trial: Trial, models: Models, samples: Data | None, alpha: float
) -> tuple[Outputs, dict[Half, dict[str, Any]], Accuracy | None, Accuracy | None]:
    """Both halves in the target's runtime, at each batch size: their outputs for the pair's reference inputs.

    Also, at the gated batch size, what the engine says of both, and their accuracy on `samples`; and the accuracy of
    the sparse half there and in float, where that is something else.
    """
    cost = None
    outputs: dict[tuple[Half, int], dict[str, NDArray[Any]]] = {}
    for size in trial.batch_sizes:
        with ExitStack() as stack:
            opened = {half: stack.enter_context(closing(trial.open(models[half, size].path, size))) for half in HALVES}
            for half, engine in opened.items():
                outputs[half, size] = batches.run(engine, trial.pair.reference.inputs, size)
                _check_outputs(trial, outputs[half, size])
            if size == trial.gated:
                info = {half: engine.info() for half, engine in opened.items()}
                found = check_accuracy(trial, opened["sparse"], opened["dense"], samples, alpha) if samples else None
                if samples and trial.integers:
                    engine = stack.enter_context(closing(quantizing.floating(trial, trial.integers, "sparse")))
                    cost = check_accuracy(trial, opened["sparse"], engine, samples, alpha)
    return outputs, info, found, cost


def _check_outputs(trial: Trial, outputs: Mapping[str, NDArray[Any]]) -> None:
    """An engine.py of one's own may give anything. Raises `ModelRefused`."""
    missing = [spec.name for spec in trial.pair.record.outputs if spec.name not in outputs]
    if missing:
        raise ModelRefused(
            f"{trial.seat.target.runtime.name} gives {', '.join(outputs) or 'nothing'}, not {', '.join(missing)}.",
            f"`run` in {trial.seat.target.folder / 'engine.py'} has to return the model's outputs by name.",
        )


def check_parity(trial: Trial, models: Models, outputs: Outputs) -> dict[str, dict[str, parity.Parity]]:
    """Both halves at every batch size against their eager logits; integers against themselves in exact arithmetic."""
    tolerance = trial.seat.target.parity[trial.precision]
    eager = {"sparse": trial.pair.reference.sparse, "dense": trial.pair.reference.dense}
    exact = quantizing.exact(trial, models)
    found: dict[str, dict[str, parity.Parity]] = {str(size): {} for size in trial.batch_sizes}
    for (half, size), arrays in outputs.items():
        found[str(size)][half] = parity.compare(arrays, exact.get((half, size), eager[half]), tolerance)
    return found


def structure(trial: Trial, models: Models, info: Mapping[Half, dict[str, Any]]) -> Structure:
    """Zeros and operators of the sparse half as deployed; operators off the fast path are named."""
    supported_ops = info["sparse"].get("supported_ops")
    lowered = models["sparse", trial.gated]
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
        steps=tuple(StepRow(**asdict(step)) for step in lowered.steps),
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
    trial: Trial,
    quantizations: Mapping[Half, graph.Quantization],
    gates: Sequence[Gate],
    right: Accuracy | None,
    cost: Accuracy | None,
) -> list[str]:
    """Where a gate on accuracy fails in int8: which layers' integers cost most."""
    if trial.integers is None or right is None or cost is None:
        return []
    measured = {"accuracy.drop": right.drop, "accuracy.sparse": right.sparse, "quantization.drop": cost.drop}
    if all(judge(gate, measured).status != "fail" for gate in gates if gate.metric in measured):
        return []
    layers = quantizing.costliest(trial, trial.integers, quantizations["sparse"])
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


def _check_control(trial: Trial, seat: Seat, model: Path, batch_size: int) -> None:
    """A control that gives other answers than the twin is no alternative to it. Raises `EngineError`."""
    reference = trial.pair.reference
    with closing(trial.open(model, batch_size, seat)) as engine:
        outputs = batches.run(engine, reference.inputs, batch_size)
    found = parity.compare(outputs, reference.dense, seat.target.parity["fp32"])
    if not found.ok:
        raise EngineError(
            f"its outputs need a tolerance of {found.required:.1e}, and {found.tolerance:.0e} is allowed.",
            "Look at the passes in its target.toml.",
        )


def measure_latency(
    trial: Trial, models: Models, plan: latency.Plan, gates: Sequence[Gate], alpha: float
) -> tuple[dict[int, latency.Latency], dict[int, Samples], list[str]]:
    """The sparse half against the twin in the same engine and in every control, at each batch size.

    The gated one is measured until the gates are decided or the budget is spent, each other for half of the budget.
    Returns the measurements and their raw samples, and a note for each control that could not take the twin, for
    an engine that died, and for what was unsteady.
    """
    dense: dict[tuple[str, int], tuple[Path, Seat]] = {}
    notes = []
    for seat in trial.controls:
        try:
            lowered = lower_half(
                trial.pair.onnx("dense"), trial.scratch / seat.target.name, seat.target, trial.batch_sizes
            )
            for size, model in lowered.items():
                _check_control(trial, seat, model.path, size)
                dense[seat.target.name, size] = (model.path, seat)
        except (EngineError, GraphError) as error:
            notes.append(f"The control {seat.target.name} was not measured: {error.message}")
            dense = {key: value for key, value in dense.items() if key[0] != seat.target.name}
    found: dict[int, latency.Latency] = {}
    raw: dict[int, Samples] = {}
    with trial.progress.task("latency", plan.budget * (1 + len(trial.batch_sizes)) / 2) as advance:
        for size in trial.batch_sizes:
            arms: dict[str, latency.Open] = {
                half: partial(trial.open, models[half, size].path, size) for half in HALVES
            }
            for (name, at), (path, seat) in dense.items():
                if at == size:
                    arms[f"dense@{name}"] = partial(trial.open, path, size, seat)
            judged = size == trial.gated
            found[size], raw[size] = latency.measure(
                arms,
                trial.inputs(size),
                batch_size=size,
                plan=plan if judged else replace(plan, budget=plan.budget / 2),
                alpha=alpha if judged else stats.ALPHA,
                decided=(lambda found: settled(gates, timing.metrics(trial, found))) if judged else None,
                cpus=trial.machine.cpus,
                advance=partial(advance, detail=f"batch {size}"),
            )
            notes += latency.notes(found[size])
    return found, raw, notes
