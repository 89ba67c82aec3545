"""Resolves what a user left open about a run: data, controls, gates and batch sizes. Runtimes are made ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import DEFAULT_GATES, Benchmark, Judging, Pipeline, Target, check_pattern, load_target
from ..data import Data
from ..data import load as load_data
from ..errors import RuntimeUnavailable, UsageError, nearest
from ..evidence import metrics, stats
from ..evidence.gates import Gate, GateError, parse, sampled
from ..evidence.metrics import Scope
from ..lowering import Deployment
from ..machine import Machine, quota_notes
from ..options import DeploymentRequest, DeployOptions
from ..pair import Pair

QUANTIZATION_GATE = "quantization.drop <= 1.0"
"""What a quantized deployment is judged by beside the other gates, where there are samples."""

FP32_RUNTIME = "onnxruntime"
"""The target that calibrates graphs and computes dequantized references; also what others' speed is held against."""


@dataclass(frozen=True)
class ResolvedDeployment:
    """One deployment of a run, with nothing left open."""

    deployment: Deployment
    controls: tuple[Deployment, ...]  # that run here
    asked_controls: tuple[str, ...]  # all that the target asks for
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What all deployments of a run share."""

    pair: Pair
    options: DeployOptions
    machine: Machine
    batch_sizes: tuple[int, ...]
    gated: int
    judged: str  # the output that accuracy is judged by
    samples: Data | None
    calibration: Data | None
    deployments: tuple[ResolvedDeployment, ...]

    @property
    def budget(self) -> float:
        """Seconds of measuring in the workload that gates judge."""
        budgets = (resolved.deployment.target.benchmark.budget for resolved in self.deployments)
        return self.options.budget or sum(budgets)

    def place(self, resolved: ResolvedDeployment) -> Path:
        """Where a bundle goes."""
        return self.options.place(self.pair.name, resolved.deployment.target, resolved.deployment.precision)

    @property
    def alpha(self) -> float:
        """What each interval may miss, so that those of all gates hold together."""
        return stats.ALPHA / max(1, sum(sampled(resolved.gates) for resolved in self.deployments))


def resolve(pair: Pair, request: DeploymentRequest, options: DeployOptions, pipeline: Pipeline | None) -> Run:
    """Resolve what a user left open, and ready the runtimes.

    Raises:
        PairError: a half is missing.
        UsageError: data, gates or options that can't be meant, or a pair without the pattern that a target requires.
        RuntimeUnavailable: a target that can't run here. A missing control is a note.
    """
    pair.require("sparse", "dense")
    for target, _ in request.deployments:
        check_pattern(target, pair.record.pattern.kind, f"the pair {pair.path}")
    judging = options.judging or (pipeline.judging if pipeline else None)
    notes: list[str] = []
    samples = _judging_data(options.data, pipeline, notes)
    judged = _judged(pair, options.judged_output, notes)
    sizes, gated = _batch_sizes(pair, options, judging or request.deployments[0][0].benchmark)
    calibration = _calibration_data(options.calibrate, pipeline, request, notes)
    machine = options.machine()
    notes += quota_notes(len(machine.cpus))
    unmeasured = [
        metrics.unmeasured(_scope(target, precision, samples is not None)) for target, precision in request.deployments
    ]
    asked = _parsed(options.gates, unmeasured)
    deployments = tuple(
        _resolve(target, precision, options, judging, asked, reasons, notes)
        for (target, precision), reasons in zip(request.deployments, unmeasured, strict=True)
    )
    return Run(
        pair=pair,
        options=options,
        machine=machine,
        batch_sizes=sizes,
        gated=gated,
        judged=judged,
        samples=samples,
        calibration=calibration,
        deployments=deployments,
    )


def _batch_sizes(pair: Pair, options: DeployOptions, measured: Judging | Benchmark) -> tuple[tuple[int, ...], int]:
    """The batch sizes that are measured, and the gated one. Raises `UsageError` for those that the pair hasn't."""
    only = pair.record.batch_size
    if only is None:
        gated = measured.gated_batch_size
        return tuple(sorted({gated, *(options.batch_sizes or measured.batch_sizes)})), gated
    others = [size for size in options.batch_sizes if size != only]
    if others:
        raise UsageError(
            f"--batch-size {others[0]}: the pair {pair.path} is for batches of {only}, since its rows depend on each "
            "other.",
            f"Leave it out, or give --batch-size {only}.",
        )
    return (only,), only


def _judged(pair: Pair, asked: str | None, notes: list[str]) -> str:
    """The output that accuracy is judged by; a note where nobody chose it. Raises `UsageError` for one it hasn't."""
    names = [spec.name for spec in pair.record.outputs]
    if asked is not None and asked not in names:
        raise UsageError(
            f"--judged-output {asked}: the pair {pair.path} has no such output{nearest(asked, names)}.",
            f"Its outputs are {', '.join(names)}.",
        )
    if asked is None and pair.record.judged_output is None and len(names) > 1:
        notes.append(
            f"The output '{names[0]}' is judged, the first of {', '.join(names)}: the pair doesn't say which "
            "(--judged-output does)."
        )
    return asked or pair.record.judged


def _resolve(
    target: Target,
    precision: str,
    options: DeployOptions,
    judging: Judging | None,
    asked: Sequence[Gate],
    unmeasured: Mapping[str, str],
    notes: Sequence[str],
) -> ResolvedDeployment:
    """One deployment. Raises `RuntimeUnavailable`; a control that can't run is a note."""
    own_notes = list(notes)
    if asked:
        gates = [gate for gate in asked if gate.metric not in unmeasured]
        left = [gate for gate in asked if gate.metric in unmeasured]
        own_notes += [f"'{gate.text}' was not judged: {unmeasured[gate.metric]}." for gate in left]
    else:
        gates = [parse(text) for text in (judging.gates if judging else DEFAULT_GATES)]
    gates += _own_gates(target, precision, gates, unmeasured)
    deployment = Deployment(options.install(target), precision)
    asked_controls = _controls(target, precision)
    controls = _ready(asked_controls, options, own_notes)
    names = tuple(control.at(control_precision) for control, control_precision in asked_controls)
    return ResolvedDeployment(deployment, controls, names, tuple(gates), tuple(own_notes))


def _own_gates(target: Target, precision: str, others: Sequence[Gate], unmeasured: Mapping[str, str]) -> list[Gate]:
    """The gates that judge every pair in a deployment, beside the `others`."""
    gates = [*map(parse, target.gates), parse(f"parity <= {target.precisions[precision].tolerance:g}")]
    quantization = parse(QUANTIZATION_GATE)
    if quantization.metric not in {*unmeasured, *(gate.metric for gate in (*others, *gates))}:
        gates.append(quantization)
    return gates


def _scope(target: Target, precision: str, samples: bool) -> Scope:
    """What will be measured of a deployment."""
    return Scope(
        kind="export",
        samples=samples,
        target=target.name,
        precision=precision,
        quantized=target.precisions[precision].quantized,
        controls=bool(target.benchmark.controls),
    )


def _parsed(texts: Sequence[str], unmeasured: Sequence[Mapping[str, str]]) -> list[Gate]:
    """The gates that a user named. Raises `UsageError` for what can't be parsed, or what no deployment measures."""
    nowhere = {
        metric: reason for metric, reason in unmeasured[0].items() if all(metric in reasons for reasons in unmeasured)
    }
    try:
        return [parse(text, nowhere) for text in texts]
    except GateError as error:
        raise UsageError(str(error), "docs/design.md lists what gates may ask for.") from error


def _judging_data(given: Data | None, pipeline: Pipeline | None, notes: list[str]) -> Data | None:
    """The samples that accuracy is judged on; a note where there are none, or where they were trained on."""
    if given is not None:
        if pipeline is not None and given.spec == pipeline.data.train:
            notes.append(f"Accuracy was judged on {given.spec}, which the pair was trained on.")
        return given
    if pipeline is not None:
        # The pipeline came with the pair, perhaps from somebody else: it may name data, but not code to run.
        return load_data(pipeline.data.judge, trusted=False)
    notes.append("Accuracy was not measured: the pair names no data, and none were given with --data.")
    return None


def _calibration_data(
    given: Data | None, pipeline: Pipeline | None, request: DeploymentRequest, notes: list[str]
) -> Data | None:
    """The calibration samples; None where none are needed. Raises `UsageError` where some are, and there are none."""
    precisions = [precision for _, precision in request.deployments]
    quantized = [precision for target, precision in request.deployments if target.precisions[precision].quantized]
    if not quantized:
        if given is not None:
            notes.append(f"Calibration data are not needed at {precisions[0]} and were not used.")
        return None
    if given is not None:
        data = given
    elif pipeline is not None:
        data = load_data(pipeline.data.train, trusted=False)
    else:
        raise UsageError(
            f"{quantized[0]} needs samples to find the ranges of activations with, and the pair names none.",
            "Give some of the training split with --calibrate.",
        )
    if pipeline is not None and data.spec == pipeline.data.judge:
        notes.append(f"Ranges were calibrated on {data.spec}, which the pair is judged by.")
    return data


def _controls(target: Target, precision: str) -> list[tuple[Target, str]]:
    """The controls of a target, in the precisions that one would serve a dense network in instead.

    That is what each control computes in as its makers recommend; beside a quantized deployment, also the control's own
    precision of that name.
    """
    controls = []
    for name in target.benchmark.controls:
        control = load_target(name)
        controls.append((control, control.control_precision))
        own = control.precisions.get(precision)
        if target.precisions[precision].quantized and own is not None and own.quantized:
            controls.append((control, precision))
    return controls


def _ready(asked: Sequence[tuple[Target, str]], options: DeployOptions, notes: list[str]) -> tuple[Deployment, ...]:
    """The controls that can run here; a note for each that can't."""
    controls = []
    for target, precision in asked:
        try:
            controls.append(Deployment(options.install(target), precision))
        except RuntimeUnavailable as error:
            notes.append(f"The control {target.at(precision)} was not measured: {error.message}")
    return tuple(controls)
