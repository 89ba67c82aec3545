"""The story on one page: `train` a pair, `export` or `compare` it, `verify` and `check` bundles, or `run` it all.

Everything right of the pair works on ONNX and numpy; torch is imported by `train` alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import bundle, checking, deployments, files, verification
from .bundle import Bundle, comparison
from .config import Judging, Pipeline, check_pattern, load_pipeline, parse_pipeline
from .data import load as load_data
from .errors import UsageError
from .extras import extra
from .keywords import takes
from .options import (
    BundleOptions,
    CheckOptions,
    CompareOptions,
    DeploymentRequest,
    DeployOptions,
    ExportOptions,
    Outcome,
    RunOptions,
    TrainOptions,
)
from .pair import Pair, check_place
from .progress import SILENT, Progress
from .records.verification import Verification

if TYPE_CHECKING:
    from .checking import Check
    from .records.rehearsal import Rehearsal


@takes(TrainOptions)
def train(pipeline: str | Pipeline, options: TrainOptions) -> Pair:
    """Train a pipeline's pair into the folder `out`/NAME; a pair of ours that is there is replaced at the end.

    A run that was interrupted goes on from `out`/NAME.checkpoint, unless it is to begin anew.

    Raises:
        ConfigError, UsageError: what is wrong with the pipeline.
        CheckpointError: the run that was interrupted was of another pipeline.
        TrainingError: the run diverged.
        OutputError: `out` can't be written.
    """
    pipeline = _pipeline(pipeline)
    with extra("train"):
        from .training import train as train_pair
    path = options.out / pipeline.name
    check_place(path)
    return train_pair(pipeline, path, options.progress, anew=options.anew)


def rehearse(pipeline: str | Pipeline, *, progress: Progress = SILENT) -> Rehearsal:
    """Take one step in each phase of a pipeline and export what comes of it; nothing is kept. Raises as `train`."""
    with extra("train"):
        from .training import rehearse as rehearse_pair
    return rehearse_pair(_pipeline(pipeline), progress)


def obtain(pipeline: str | Pipeline, runs: str | Path = "runs", *, progress: Progress = SILENT) -> Pair:
    """The pair of a pipeline: the one in `runs`/NAME if it was trained so, and a newly trained one if there is none.

    How the pair is judged may have changed since, and its description; what it is trained by may not.

    Raises:
        UsageError: the one that is there was trained otherwise. It is neither used nor replaced.
    """
    pipeline = _pipeline(pipeline)
    path = Path(runs) / pipeline.name
    check_place(path)
    if not (path / "pair.json").exists():
        progress.say(f"There is no pair at {path} yet; training it by the pipeline {pipeline.name}.")
        return train(pipeline, runs, progress=progress)
    pair = Pair.load(path)
    if _trained_by(pair_pipeline(pair)) != _trained_by(pipeline):
        raise UsageError(
            f"The pair {path} was not trained as the pipeline {pipeline.name} says now.",
            f"Export it as it is with --pair {path}, or replace it with `acdc-export train`.",
        )
    progress.say(f"Reusing the pair {path}, trained on {pair.record.created[:10]}.")
    return pair


@takes(RunOptions)
def run(pipeline: str | Pipeline, options: RunOptions) -> Outcome:
    """Run a pipeline from its start to its end: `obtain` its pair, then deploy it as `export` or `compare` does.

    Whether all targets can run here and may be written is found out before anything is trained.

    Raises:
        AcdcExportError: see `errors` for the kinds.
    """
    pipeline = _pipeline(pipeline)
    # The user named this pipeline, so that code which it names as data may run, unlike that of a received pair.
    options = replace(
        options,
        targets=options.targets or pipeline.judging.targets,
        judging=options.judging or pipeline.judging,
        data=load_data(pipeline.data.judge) if options.data is None else options.data,
    )
    request = deployments.several(options)
    if options.calibrate is None and any(
        target.precisions[precision].quantized for target, precision in request.deployments
    ):
        options = replace(options, calibrate=load_data(pipeline.data.train))
    for target, precision in request.deployments:
        check_pattern(target, pipeline.pattern.kind, f"the pipeline {pipeline.name}")
        bundle.check_place(options.place(pipeline.name, target, precision))
        options.install(target).check_build(precision)
    if request.several:
        files.check_place(options.comparison_place(pipeline.name), comparison.MARKER)
    return _deploy(obtain(pipeline, options.runs, progress=options.progress), request, options)


@takes(ExportOptions)
def export(pair: Pair | str | Path, options: ExportOptions) -> Bundle:
    """Put a pair into a target's runtime, judge it against its twin, and write the bundle `out`/PAIR-TARGET.

    Returns:
        the bundle; its `passed` says whether every gate passed.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    pair = _pair(pair)
    (written,) = _deploy(pair, deployments.single(options.target, options.precision), options).bundles
    return written


@takes(CompareOptions)
def compare(pair: Pair | str | Path, options: CompareOptions) -> Outcome:
    """Put a pair into several deployments, measure them in turns, and write a bundle of each and their comparison.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    pair = _pair(pair)
    return _deploy(pair, deployments.several(options), options)


@takes(BundleOptions)
def verify(path: str | Path, options: BundleOptions) -> Verification:
    """Verify a bundle on this machine: its files, then every model against its golden outputs in its runtime.

    Nothing is written into the bundle.

    Raises:
        BundleError: it can't be read.
        UsageError: its target has to be named.
        RuntimeUnavailable, EngineError: its runtime can't run here.
    """
    verdicts, notes = verification.examine(Bundle.load(path), options)
    return Verification(str(path), tuple(verdicts), tuple(notes))


@takes(CheckOptions)
def check(new: str | Path, options: CheckOptions) -> Check:
    """Hold a bundle against an older one, itself, or stored ratios; one of the first four options says which.

    Returns:
        what was found; its `passed` says whether every gate passed.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    request = checking.resolve(Path(new), options)
    return request.keep(*checking.conduct(request.setup))


def pair_pipeline(pair: Pair) -> Pipeline | None:
    """The pipeline that trained a pair, if one did. Raises `ConfigError` where it is none of this release."""
    text = pair.record.pipeline
    return parse_pipeline(text, f"the pipeline in {pair.path}") if text else None


def _deploy(pair: Pair, request: DeploymentRequest, options: DeployOptions) -> Outcome:
    with extra("export"):
        from .evaluation import deploying
    return deploying.deploy(pair, request, options, pair_pipeline(pair))


def _pair(pair: Pair | str | Path) -> Pair:
    return pair if isinstance(pair, Pair) else Pair.load(pair)


def _pipeline(pipeline: str | Pipeline) -> Pipeline:
    return load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline


def _trained_by(pipeline: Pipeline | None) -> Pipeline | None:
    """What of a pipeline makes the pair: all but how it is judged and described."""
    if pipeline is None:
        return None
    judging = Judging(targets=("",), batch_sizes=(1,), gated_batch_size=1, gates=("",))
    return replace(pipeline, judging=judging, description="", text="", data=replace(pipeline.data, judge=""))
