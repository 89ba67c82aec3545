"""One pair, and one deployment of it or several: what a user left open is settled, each is examined, all are timed
together, and a bundle of each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from numpy.typing import NDArray

from .. import bundle, evaluation, files
from ..bundle import Bundle, comparison
from ..config import DEFAULT_GATES, Pipeline, Target, load_target
from ..data import Data
from ..data import load as load_data
from ..errors import CalibrationError, EngineError, GraphError, RuntimeUnavailable, UsageError
from ..evidence import latency, metrics, stats
from ..evidence.gates import Gate, GateError, parse, sampled
from ..evidence.metrics import Scope
from ..machine import Machine
from ..options import DeploymentRequest, Options, Outcome
from ..pair import Pair
from ..records.report import Report
from . import Deployment, Evaluation, Integers, StaticResults, Timed

INTEGER_GATE = "quantization.drop <= 1.0"
"""What int8 is judged by beside the other gates, on samples."""

FLOATS = "onnxruntime"
"""The target that runs what a graph of integers is calibrated with and held against."""


@dataclass(frozen=True)
class _Case:
    """One deployment, with all that was left open about it settled."""

    deployment: Deployment
    controls: tuple[Deployment, ...]  # that run here
    asked_controls: tuple[str, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """What all deployments of a run share."""

    pair: Pair
    options: Options
    machine: Machine
    sizes: tuple[int, ...]
    gated: int
    samples: Data | None
    calibration: Data | None
    cases: tuple[_Case, ...]

    @property
    def budget(self) -> float:
        """Seconds of measuring in the workload that gates judge."""
        return self.options.budget or sum(case.deployment.target.benchmark.budget for case in self.cases)

    def place(self, case: _Case) -> Path:
        """Where a bundle goes."""
        return self.options.place(self.pair.name, case.deployment.target, case.deployment.precision)

    @property
    def alpha(self) -> float:
        """What each interval may miss, so that those of all gates hold together."""
        return stats.ALPHA / max(1, sum(sampled(case.gates) for case in self.cases))


def deploy(pair: Pair, wanted: DeploymentRequest, options: Options, pipeline: Pipeline | None) -> Outcome:
    """Examine, time and judge all deployments of a pair, and write a bundle of each.

    Raises:
        AcdcExportError: see `errors` for the kinds. Of several deployments, one that can't be examined is told in the
            comparison.
    """
    begun = monotonic()
    if wanted.several:
        files.check_place(options.comparison_place(pair.name), comparison.MARKER)
    run = _resolve(pair, wanted, options, pipeline)
    missing, examined = dict(wanted.missing), list[tuple[_Case, StaticResults]]()
    with files.scratch(options.out / pair.name) as scratch, ExitStack() as bundles:
        integers = _integers(run, scratch)
        for case in run.cases:
            try:
                with ExitStack() as attempt:
                    folder = attempt.enter_context(bundle.create(run.place(case)))
                    found = evaluation.examine(_evaluation(run, case, integers, folder, scratch), run.alpha)
                    bundles.push(attempt.pop_all())  # it is written when all of them were timed
                    examined.append((case, found))
            except (CalibrationError, EngineError, GraphError) as error:
                if not wanted.several:
                    raise
                missing[case.deployment.name] = error.message
        if not examined:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            raise EngineError(f"The pair can be deployed nowhere. {reasons}", "Choose other targets or precisions.")
        timing = evaluation.measure([found for _, found in examined], latency.Plan(budget=run.budget), run.alpha)
        reports = [
            _finish(run, case, found, timed, monotonic() - begun)
            for (case, found), timed in zip(examined, timing.evaluations, strict=True)
        ]
    written = tuple(Bundle.load(run.place(case)) for case, _ in examined)
    for one in written:
        options.progress.say(f"Wrote the bundle {one.path}.")
    if not wanted.several:
        return Outcome(written)
    compared = evaluation.compare(
        [found for _, found in examined],
        reports,
        timing,
        reference=FLOATS,
        missing=missing,
        survey=wanted.survey,
        require_deployable=options.require_deployable,
        notes=dict.fromkeys(note for case, _ in examined for note in case.notes),
        seconds=monotonic() - begun,
    )
    place = options.comparison_place(pair.name)
    comparison.write(
        place, compared, latency.archive({str(workload): one.samples() for workload, one in timing.workloads.items()})
    )
    options.progress.say(f"Wrote the comparison {place}.")
    return Outcome(written, compared)


def _resolve(pair: Pair, wanted: DeploymentRequest, options: Options, pipeline: Pipeline | None) -> _Run:
    """Find out what a user left open, and ready the runtimes."""
    judging = options.judging or (pipeline.judging if pipeline else None)
    notes: list[str] = []
    samples = _judged_by(options.data, pipeline, notes)
    calibration = _calibrated_by(options.calibrate, pipeline, [precision for _, precision in wanted.deployments], notes)
    here = options.machine()
    unmeasured = [
        metrics.unmeasured(_scope(target, precision, samples is not None)) for target, precision in wanted.deployments
    ]
    chosen = _parsed(options.gates, unmeasured)
    cases = []
    for (target, precision), reasons in zip(wanted.deployments, unmeasured, strict=True):
        gates = [gate for gate in chosen if gate.metric not in reasons]
        left = [f"'{gate.text}' was not judged: {reasons[gate.metric]}." for gate in chosen if gate not in gates]
        if not chosen:
            gates = [parse(text) for text in (judging.gates if judging else DEFAULT_GATES)]
        gates += _own_gates(target, precision, gates, reasons)
        cases.append(_case(target, precision, options, gates, [*notes, *left]))
    measured = judging or wanted.deployments[0][0].benchmark
    return _Run(
        pair=pair,
        options=options,
        machine=here,
        sizes=tuple(sorted({measured.gated_batch_size, *(options.batch_sizes or measured.batch_sizes)})),
        gated=measured.gated_batch_size,
        samples=samples,
        calibration=calibration,
        cases=tuple(cases),
    )


def _own_gates(target: Target, precision: str, others: Sequence[Gate], unmeasured: Mapping[str, str]) -> list[Gate]:
    """The gates that judge every pair in a deployment, beside the `others`."""
    gates = [*map(parse, target.gates), parse(f"parity <= {target.parity[precision]:g}")]
    own = parse(INTEGER_GATE)
    if own.metric not in {*unmeasured, *(gate.metric for gate in (*others, *gates))}:
        gates.append(own)
    return gates


def _case(target: Target, precision: str, options: Options, gates: Sequence[Gate], notes: list[str]) -> _Case:
    """A deployment whose runtimes are ready. Raises `RuntimeUnavailable`; without a control there is a note."""
    deployment = Deployment(options.install(target), precision)
    asked = _controls(target, precision)
    controls = _ready(asked, options, notes)
    return _Case(deployment, controls, tuple(control.at(at) for control, at in asked), tuple(gates), tuple(notes))


def _scope(target: Target, precision: str, samples: bool) -> Scope:
    """What will be measured of a deployment."""
    return Scope(
        kind="export",
        samples=samples,
        target=target.name,
        precision=precision,
        quantized=precision == "int8",
        controls=bool(target.benchmark.controls),
    )


def _parsed(texts: Sequence[str], unmeasured: Sequence[Mapping[str, str]]) -> list[Gate]:
    """The gates that a user named. Raises `UsageError` for what can't be parsed, or what no deployment measures."""
    nowhere = {key: why for key, why in unmeasured[0].items() if all(key in one for one in unmeasured)}
    try:
        return [parse(text, nowhere) for text in texts]
    except GateError as error:
        raise UsageError(str(error), "docs/design.md lists what gates may ask for.") from error


def _judged_by(given: Data | None, pipeline: Pipeline | None, notes: list[str]) -> Data | None:
    if given is not None:
        if pipeline is not None and given.spec == pipeline.data.train:
            notes.append(f"Accuracy was judged on {given.spec}, which the pair was trained on.")
        return given
    if pipeline is not None:
        # The pipeline came with the pair, perhaps from somebody else: it may name data, but not code to run.
        return load_data(pipeline.data.judge, trusted=False)
    notes.append("Accuracy was not measured: the pair names no data, and none were given with --data.")
    return None


def _calibrated_by(
    given: Data | None, pipeline: Pipeline | None, precisions: Sequence[str], notes: list[str]
) -> Data | None:
    """The calibration samples; None where none are needed. Raises `UsageError` where some are, and there are none."""
    if "int8" not in precisions:
        if given is not None:
            notes.append(f"Calibration data are not needed at {precisions[0]} and were not used.")
        return None
    if given is not None:
        found = given
    elif pipeline is not None:
        found = load_data(pipeline.data.train, trusted=False)
    else:
        raise UsageError(
            "int8 needs samples to find the ranges of activations with, and the pair names none.",
            "Give some of the training split with --calibrate.",
        )
    if pipeline is not None and found.spec == pipeline.data.judge:
        notes.append(f"Ranges were calibrated on {found.spec}, which the pair is judged by.")
    return found


def _controls(target: Target, precision: str) -> list[tuple[Target, str]]:
    """The controls of a target, in the precisions that one would serve a dense network in instead: what a runtime
    computes in by itself, and beside int8 its own int8."""
    found = []
    for name in target.benchmark.controls:
        control = load_target(name)
        found.append((control, "default" if "default" in control.parity else "fp32"))
        if precision == "int8" and "int8" in control.parity:
            found.append((control, "int8"))
    return found


def _ready(asked: Sequence[tuple[Target, str]], options: Options, notes: list[str]) -> tuple[Deployment, ...]:
    """The controls that can run here; a note for each that can't."""
    found = []
    for target, precision in asked:
        try:
            found.append(Deployment(options.install(target), precision))
        except RuntimeUnavailable as error:
            notes.append(f"The control {target.at(precision)} was not measured: {error.message}")
    return tuple(found)


def _integers(run: _Run, scratch: Path) -> Integers | None:
    """What int8 needs, of the pair; None where no deployment is in int8."""
    deployments = [one for case in run.cases for one in (case.deployment, *case.controls)]
    schemes = [one.scheme for one in deployments if one.scheme is not None]
    if run.calibration is None or not schemes:
        return None
    options = run.options
    floats = Deployment(options.install(load_target(FLOATS)), "fp32")
    return evaluation.prepare(
        run.pair,
        run.calibration,
        floats,
        scratch,
        run.machine,
        options.progress,
        schemes=schemes,
        keep=options.keep_fp32,
    )


def _evaluation(run: _Run, case: _Case, integers: Integers | None, folder: Path, scratch: Path) -> Evaluation:
    own = scratch / case.deployment.name
    own.mkdir()
    return Evaluation(
        pair=run.pair,
        deployment=case.deployment,
        controls=case.controls,
        asked_controls=case.asked_controls,
        machine=run.machine,
        batch_sizes=run.sizes,
        gated=run.gated,
        folder=folder,
        scratch=own,
        progress=run.options.progress,
        gates=case.gates,
        samples=run.samples,
        integers=integers if case.deployment.precision == "int8" else None,
        threads=run.options.threads,
    )


def _finish(run: _Run, case: _Case, found: StaticResults, timed: Timed, seconds: float) -> Report:
    """Write what goes beside the models of a bundle, and return its report."""
    report = evaluation.report(
        found, timed, deployable=run.options.require_deployable, notes=case.notes, seconds=seconds
    )
    bundle.finish(
        found.evaluation.folder,
        evaluation.manifest(found),
        report,
        golden_inputs=_head(run.pair.reference.inputs),
        golden_outputs={size: _head(found.outputs["sparse", size]) for size in run.sizes},
        samples=latency.archive(timed.samples),
    )
    return report


def _head(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The golden samples of a bundle: enough for one batch of most sizes, few enough to ship."""
    return {name: array[:16] for name, array in arrays.items()}
