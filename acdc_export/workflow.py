"""The story on one page: `train`, `export`, `verify`, and `obtain` and `run` that combine them.

Everything right of the pair works on ONNX and numpy; torch is imported by `train` alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import bundle, engines, files, machine, resources
from .bundle import Bundle
from .config import DEFAULT_GATES, Judging, Pipeline, Target, load_pipeline, load_target, parse_pipeline
from .data import Data
from .data import load as load_data
from .errors import RuntimeUnavailable, UsageError, nearest
from .evidence import batches, gates, parity
from .evidence.gates import Verdict
from .extras import extra
from .pair import Pair, check_place
from .progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Seat

Ask = Callable[[str], bool]


def train(pipeline: str | Pipeline, out: str | Path = "runs", *, progress: Progress = SILENT) -> Pair:
    """Train a pipeline's pair into the folder `out`/NAME; a pair of ours that is there is replaced when it is done.

    Raises:
        ConfigError, UsageError: what is wrong with the pipeline.
        TrainingError: the run diverged.
        OutputError: `out` can't be written.
    """
    pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    with extra("train"):
        from .training import train as train_pair
    path = Path(out) / pipeline.name
    check_place(path)
    return train_pair(pipeline, path, progress)


def obtain(pipeline: str | Pipeline, runs: str | Path = "runs", *, progress: Progress = SILENT) -> Pair:
    """The pair of a pipeline: the one in `runs`/NAME if it was trained so, and a newly trained one if there is none.

    How the pair is judged may have changed since, and its description; what it is trained by may not.

    Raises:
        UsageError: the one that is there was trained otherwise. It is neither used nor replaced.
    """
    pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    path = Path(runs) / pipeline.name
    check_place(path)
    if not (path / "pair.json").exists():
        progress.say(f"There is no pair at {path} yet; training it by the pipeline {pipeline.name}.")
        return train(pipeline, runs, progress=progress)
    pair = Pair.load(path)
    if _recipe(pair_pipeline(pair)) != _recipe(pipeline):
        raise UsageError(
            f"The pair {path} was not trained as the pipeline {pipeline.name} says now.",
            f"Export it as it is with --pair {path}, or replace it with `acdc-export train`.",
        )
    progress.say(f"Reusing the pair {path}, trained on {pair.record.created[:10]}.")
    return pair


def run(
    pipeline: str | Pipeline,
    targets: Iterable[str | Target] = (),
    *,
    runs: str | Path = "runs",
    out: str | Path = "bundles",
    precision: str = "fp32",
    accept_licenses: Iterable[str] = (),
    ask: Ask | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[Bundle]:
    """A pipeline from its start to its end: `obtain` its pair, then `export` it to each of its targets.

    Whether all of them can run here and may be written is found out before anything is trained.

    Args:
        targets: others than the pipeline's own.
        options: as for `export`.

    Raises:
        AcdcExportError: see `errors` for the kinds.
    """
    pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    chosen = [load_target(one) if isinstance(one, str) else one for one in targets or pipeline.judging.targets]
    machine.describe(options.get("threads"))
    # The user named this pipeline, so that code which it names as data may run, unlike that of a received pair.
    options["data"] = _as_data(pipeline.data.judge if options.get("data") is None else options["data"])
    accepted = frozenset(accept_licenses)
    for target in chosen:
        _check_precision(target, precision)
        bundle.check_place(_place(out, pipeline.name, target, precision))
        engines.ensure(target, accept_licenses=accepted, progress=progress, ask=ask)
    pair = obtain(pipeline, runs, progress=progress)
    return [
        export(
            pair,
            target,
            judging=pipeline.judging,
            out=out,
            precision=precision,
            accept_licenses=accepted,
            ask=ask,
            progress=progress,
            **options,
        )
        for target in chosen
    ]


def export(
    pair: Pair | str | Path,
    target: Target | str = "cpu",
    *,
    precision: str = "fp32",
    judging: Judging | None = None,
    data: str | Data | Iterable[Any] | None = None,
    calibrate: str | Data | Iterable[Any] | None = None,
    out: str | Path = "bundles",
    batch_sizes: Iterable[int] = (),
    threads: int | None = None,
    require_deployable: bool = False,
    accept_licenses: Iterable[str] = (),
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Put a pair into a target's runtime, judge it against its twin, and write the bundle `out`/PAIR-TARGET.

    Args:
        judging: batch sizes and gates; by default those of the pair's pipeline, or the target's where it has none.
        data: what accuracy is judged by: a spec as for `data.load`, or an iterable of (inputs, labels) batches. By
            default what the pair's pipeline names.
        calibrate: for precisions that need it, from the training split; fp32 needs none.
        batch_sizes: measured beside the gated one, which the pipeline fixes; by default as the pipeline says.
        threads: physical cores to use; all of them by default.
        accept_licenses: runtimes whose licenses the user accepts.
        ask: shows a license notice and returns whether it was accepted; None where nobody can be asked.

    Returns:
        the bundle; its `report.passed` says whether every gate passed.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    begun = monotonic()
    pair = Pair.load(pair) if not isinstance(pair, Pair) else pair
    target = load_target(target) if isinstance(target, str) else target
    _check_precision(target, precision)
    with extra("export"):
        from . import trial as trials
        from .evidence import latency

    pipeline = pair_pipeline(pair)
    judging = judging or (pipeline.judging if pipeline else None)
    measured = judging or target.benchmark
    gated = measured.gated_batch_size
    sizes = tuple(sorted({gated, *(batch_sizes or measured.batch_sizes)}))
    texts = (*(judging.gates if judging else DEFAULT_GATES), *target.gates, f"parity <= {target.parity[precision]:g}")
    notes: list[str] = []
    samples = _judged_by(data, pipeline, notes)
    if calibrate is not None:
        _as_data(calibrate)
        notes.append(f"Calibration data are not needed at {precision} and were not used.")
    here = machine.describe(threads)
    accepted = frozenset(accept_licenses)
    seat = trials.Seat(target, engines.ensure(target, accept_licenses=accepted, progress=progress, ask=ask))
    controls = _controls(target, accepted, progress, ask, notes)

    plan = latency.Plan(launches=target.benchmark.launches, seconds=target.benchmark.seconds)
    path = _place(out, pair.name, target, precision)
    with bundle.create(path) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # in there, so that it never outlives the bundle's
            trial = trials.Trial(pair, seat, controls, here, precision, sizes, gated, folder, Path(scratch), progress)
            found = trials.conduct(trial, samples, plan)
        bundle.finish(
            folder,
            trials.manifest(trial, found),
            trials.report(
                trial,
                found,
                [gates.parse(text) for text in texts],
                deployable=require_deployable,
                notes=notes,
                seconds=monotonic() - begun,
            ),
            golden_inputs=_head(pair.reference.inputs),
            golden_outputs={size: _head(found.outputs["sparse", size]) for size in sizes},
            samples=latency.archive(found.samples),
        )
    progress.say(f"Wrote the bundle {path}.")
    return Bundle.load(path)


@dataclass(frozen=True)
class Verification:
    """What `verify` found: a verdict for each check, and notes. A bundle that failed its gates doesn't pass."""

    bundle: str
    checks: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return gates.exit_code(self.checks)


def verify(
    path: str | Path,
    *,
    target: str | None = None,
    threads: int | None = None,
    accept_licenses: Iterable[str] = (),
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Check a bundle on this machine: its files, then every model against its golden outputs in its runtime.

    `target` is the folder of the target, where it is not a built-in one. Nothing is written into the bundle.

    Raises:
        BundleError: it can't be read.
        RuntimeUnavailable, EngineError: its runtime can't run here.
    """
    shipped = Bundle.load(path)
    manifest = shipped.manifest
    damaged = shipped.damage()
    checks = [Verdict("files", "fail" if damaged else "pass", "; ".join(damaged) or f"{len(manifest.files)} unaltered")]
    if damaged:
        return Verification(
            str(path), tuple(checks), ("The models were not run, since the files are not the ones tested.",)
        )
    if target is None and manifest.target not in resources.names("targets"):
        # A path in a bundle that somebody sent would be code that came with it.
        raise UsageError(
            f"{path} was made for the target '{manifest.target}', which is not a built-in one.",
            "Name its folder yourself, with --target.",
        )
    definition = load_target(target or manifest.target)
    made = shipped.report
    checks.append(Verdict("gates, when it was made", made.verdict, f"on {made.machine.processor}"))
    notes = []
    if files.folder_sha256(definition.folder) != manifest.target_sha256:
        notes.append(f"The target {definition.name} is defined otherwise than when the bundle was made.")
    here = machine.describe(threads)
    environment = engines.ensure(definition, accept_licenses=frozenset(accept_licenses), progress=progress, ask=ask)
    for size in manifest.batch_sizes:
        model = shipped.model(size)
        with closing(
            engines.open_engine(definition, environment, model, batch_size=size, threads=len(here.cpus), cpus=here.cpus)
        ) as engine:
            outputs = batches.run(engine, shipped.golden_inputs, size)
            info = engine.info()
        found = parity.compare(outputs, shipped.golden_outputs(size), manifest.tolerance)
        detail = f"{model.name}: tolerance needed {found.required:.1e} of {found.tolerance:.0e}"
        checks.append(Verdict(f"golden outputs, batch {size}", "pass" if found.ok else "fail", detail))
        if size == manifest.gated_batch_size and manifest.supported_ops is not None:
            supported = info.get("supported_ops")
            same = supported is not None and supported >= manifest.supported_ops
            detail = f"{supported} of the operators on the fast path, {manifest.supported_ops} when it was made"
            checks.append(Verdict("supported_ops", "pass" if same else "fail", detail))
    notes += [
        f"The {what} is {info.get(key)} here, and was {before} when the bundle was made."
        for what, key, before in (
            ("runtime's version", "version", made.target.version),
            ("instruction set", "instruction_set", made.target.instruction_set),
        )
        if info.get(key) != before
    ]
    return Verification(str(path), tuple(checks), tuple(notes))


def pair_pipeline(pair: Pair) -> Pipeline | None:
    """The pipeline that trained a pair, if one did. Raises `ConfigError` where it is none of this release."""
    text = pair.record.pipeline
    return parse_pipeline(text, f"the pipeline in {pair.path}") if text else None


def _recipe(pipeline: Pipeline | None) -> Pipeline | None:
    """What of a pipeline makes the pair: all but how it is judged and described."""
    if pipeline is None:
        return None
    judging = Judging(targets=("",), batch_sizes=(1,), gated_batch_size=1, gates=("",))
    return replace(pipeline, judging=judging, description="", text="", data=replace(pipeline.data, judge=""))


def _place(out: str | Path, name: str, target: Target, precision: str) -> Path:
    return Path(out) / f"{name}-{target.name}{'' if precision == 'fp32' else f'-{precision}'}"


def _check_precision(target: Target, precision: str) -> None:
    known = list(target.parity)
    if precision not in known:
        raise UsageError(
            f"The target {target.name} has no precision '{precision}'{nearest(precision, known)}.",
            f"It offers {', '.join(known)}.",
        )


def _head(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The golden samples of a bundle: enough for one batch of most sizes, few enough to ship."""
    return {name: array[:16] for name, array in arrays.items()}


def _judged_by(given: str | Data | Iterable[Any] | None, pipeline: Pipeline | None, notes: list[str]) -> Data | None:
    if given is not None:
        found = _as_data(given)
        if pipeline is not None and found.spec == pipeline.data.train:
            notes.append(f"Accuracy was judged on {found.spec}, which the pair was trained on.")
        return found
    if pipeline is not None:
        # The pipeline came with the pair, perhaps from somebody else: it may name data, but not code to run.
        return load_data(pipeline.data.judge, trusted=False)
    notes.append("Accuracy was not measured: the pair names no data, and none were given with --data.")
    return None


def _as_data(given: str | Data | Iterable[Any]) -> Data:
    if isinstance(given, str):
        return load_data(given)
    return given if isinstance(given, Data) else Data.of(given)


def _controls(
    target: Target, accepted: frozenset[str], progress: Progress, ask: Ask | None, notes: list[str]
) -> tuple[Seat, ...]:
    """The target's controls that can run here; a note for each that can't."""
    from .trial import Seat

    seats = []
    for name in target.benchmark.controls:
        control = load_target(name)
        try:
            environment = engines.ensure(control, accept_licenses=accepted, progress=progress, ask=ask)
        except RuntimeUnavailable as error:
            notes.append(f"The control {name} was not measured: {error.message}")
        else:
            seats.append(Seat(control, environment))
    return tuple(seats)
