"""One pair in one deployment or several: each is examined, all are timed together, and a bundle of each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

from numpy.typing import NDArray

from .. import bundle, files
from ..bundle import Bundle, comparison
from ..config import Pipeline, load_target
from ..errors import CalibrationError, EngineError, GraphError
from ..evidence import latency
from ..lowering import Deployment
from ..options import DeploymentRequest, DeployOptions, Outcome
from ..pair import Pair
from ..records.comparison import Comparison
from ..records.report import Report
from . import comparing, quantizing, recording, timing
from .resolving import FP32_RUNTIME, ResolvedDeployment, Run, resolve
from .setup import Evaluation, Int8
from .static import StaticResults, examine
from .timing import Timed, Timing

GOLDEN = 16
"""Golden samples of a bundle: enough for one batch of most sizes, few enough to ship."""


def deploy(pair: Pair, request: DeploymentRequest, options: DeployOptions, pipeline: Pipeline | None) -> Outcome:
    """Examine, time and judge all deployments of a pair, and write a bundle of each.

    Raises:
        AcdcExportError: see `errors` for the kinds. Of several deployments, one that can't be examined is told in the
            comparison.
    """
    begun = monotonic()
    if request.several:
        files.check_place(options.comparison_place(pair.name), comparison.MARKER)
    run = resolve(pair, request, options, pipeline)
    missing = dict(request.missing)
    with files.scratch(options.out / pair.name) as scratch, ExitStack() as bundles:
        results = _examine(run, request, scratch, bundles, missing)
        timed = timing.measure([result for _, result in results], latency.Plan(budget=run.budget), run.alpha)
        reports = [
            _finish(run, resolved, result, own, monotonic() - begun)
            for (resolved, result), own in zip(results, timed.evaluations, strict=True)
        ]
    written = tuple(Bundle.load(run.place(resolved)) for resolved, _ in results)
    for written_bundle in written:
        options.progress.say(f"Wrote the bundle {written_bundle.path}.")
    if not request.several:
        return Outcome(written)
    return Outcome(written, _compare(run, request, results, reports, timed, missing, begun))


def _examine(
    run: Run, request: DeploymentRequest, scratch: Path, bundles: ExitStack, missing: dict[str, str]
) -> list[tuple[ResolvedDeployment, StaticResults]]:
    """Examine every deployment. When `bundles` ends, their bundles are written. What can't be had goes to `missing`."""
    int8 = _calibrated(run, scratch)
    results = list[tuple[ResolvedDeployment, StaticResults]]()
    for resolved in run.deployments:
        try:
            with ExitStack() as attempt:
                folder = attempt.enter_context(bundle.create(run.place(resolved)))
                result = examine(_evaluation(run, resolved, int8, folder, scratch), run.alpha)
                bundles.push(attempt.pop_all())  # it is written when all of them were timed
                results.append((resolved, result))
        except (CalibrationError, EngineError, GraphError) as error:
            if not request.several:
                raise
            missing[resolved.deployment.name] = error.message
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise EngineError(f"The pair can be deployed nowhere. {reasons}", "Choose other targets or precisions.")
    return results


def _calibrated(run: Run, scratch: Path) -> Int8 | None:
    """What quantized deployments need of the pair; None where none is quantized."""
    deployments = [place for resolved in run.deployments for place in (resolved.deployment, *resolved.controls)]
    quantized = [deployment for deployment in deployments if deployment.settings.quantized]
    if run.calibration is None or not quantized:
        return None
    return quantizing.calibrate(
        run.pair,
        run.calibration,
        quantized,
        fp32=Deployment(run.options.install(load_target(FP32_RUNTIME)), "fp32"),
        folder=scratch,
        machine=run.machine,
        progress=run.options.progress,
        keep=run.options.keep_fp32,
    )


def _evaluation(run: Run, resolved: ResolvedDeployment, int8: Int8 | None, folder: Path, scratch: Path) -> Evaluation:
    own_scratch = scratch / resolved.deployment.name
    own_scratch.mkdir()
    return Evaluation(
        pair=run.pair,
        deployment=resolved.deployment,
        controls=resolved.controls,
        asked_controls=resolved.asked_controls,
        machine=run.machine,
        batch_sizes=run.batch_sizes,
        gated=run.gated,
        judged=run.judged,
        folder=folder,
        scratch=own_scratch,
        progress=run.options.progress,
        gates=resolved.gates,
        samples=run.samples,
        int8=int8 if resolved.deployment.settings.quantized else None,
        threads=run.options.threads,
    )


def _finish(run: Run, resolved: ResolvedDeployment, results: StaticResults, timed: Timed, seconds: float) -> Report:
    """Write what goes beside the models of a bundle, and return its report."""
    report = recording.report(
        results, timed, deployable=run.options.require_deployable, notes=resolved.notes, seconds=seconds
    )
    bundle.finish(
        results.evaluation.folder,
        recording.manifest(results),
        report,
        golden_inputs=_golden(run.pair, run.pair.reference.inputs),
        golden_outputs={size: _golden(run.pair, results.outputs["sparse", size]) for size in run.batch_sizes},
        samples=latency.archive(timed.samples),
    )
    return report


def _golden(pair: Pair, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The first samples; a whole batch of a pair that runs on no other size."""
    rows = pair.record.batch_size or GOLDEN
    return {name: array[:rows] for name, array in arrays.items()}


def _compare(
    run: Run,
    request: DeploymentRequest,
    results: Sequence[tuple[ResolvedDeployment, StaticResults]],
    reports: Sequence[Report],
    timed: Timing,
    missing: Mapping[str, str],
    begun: float,
) -> Comparison:
    """Write what several deployments come to, side by side."""
    record = comparing.compare(
        [result for _, result in results],
        reports,
        timed,
        reference=FP32_RUNTIME,
        missing=missing,
        survey=request.survey,
        require_deployable=run.options.require_deployable,
        notes=dict.fromkeys(note for resolved, _ in results for note in resolved.notes),
        seconds=monotonic() - begun,
    )
    place = run.options.comparison_place(run.pair.name)
    samples = {str(workload): alternation.samples() for workload, alternation in timed.workloads.items()}
    comparison.write(place, record, latency.archive(samples))
    run.options.progress.say(f"Wrote the comparison {place}.")
    return record
