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

from . import bundle, checking, engines, files, machine
from .bundle import Bundle
from .config import DEFAULT_GATES, Judging, Pipeline, Target, load_pipeline, load_target, parse_pipeline
from .data import Data
from .data import load as load_data
from .errors import RuntimeUnavailable, UsageError, nearest
from .evidence import batches, latency, parity
from .evidence.gates import Gate, GateError, Verdict, exit_code, parse
from .extras import extra
from .pair import Pair, check_place
from .progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .checking import Check, Contender
    from .training import Rehearsal


Ask = Callable[[str], bool]

INTEGER_GATE = "quantization.drop <= 1.0"
"""What int8 is judged by beside the other gates, on samples."""

FLOATS = "onnxruntime"
"""The target that runs what a graph of integers is calibrated with and held against."""


def train(
    pipeline: str | Pipeline, out: str | Path = "runs", *, anew: bool = False, progress: Progress = SILENT
) -> Pair:
    """Train a pipeline's pair into the folder `out`/NAME; a pair of ours that is there is replaced when it is done.

    A run that was interrupted goes on from `out`/NAME.checkpoint, unless it is to begin `anew`.

    Raises:
        ConfigError, UsageError: what is wrong with the pipeline.
        CheckpointError: the run that was interrupted was of another pipeline.
        TrainingError: the run diverged.
        OutputError: `out` can't be written.
    """
    pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    with extra("train"):
        from .training import train as train_pair
    path = Path(out) / pipeline.name
    check_place(path)
    return train_pair(pipeline, path, progress, anew=anew)


def rehearse(pipeline: str | Pipeline, *, progress: Progress = SILENT) -> Rehearsal:
    """Take one step in each phase of a pipeline and export what comes of it; nothing is kept. Raises as `train`."""
    with extra("train"):
        from .training import rehearse as rehearse_pair
    return rehearse_pair(load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline, progress)


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
    if precision != "fp32" and options.get("calibrate") is None:
        options["calibrate"] = load_data(pipeline.data.train)
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
    keep_fp32: Iterable[str] = (),
    out: str | Path = "bundles",
    batch_sizes: Iterable[int] = (),
    gates: Iterable[str] = (),
    budget: float | None = None,
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
        calibrate: what int8 finds its ranges with, from the training split; labels are not looked at. By default what
            the pair's pipeline trains on. fp32 needs none.
        keep_fp32: layers that stay in float in int8, by their weights' names.
        batch_sizes: measured beside the gated one, which the pipeline fixes; by default as the pipeline says.
        gates: to be judged by instead of the pipeline's, `METRIC >= LIMIT`; those of the target stay.
        budget: seconds of measuring at the gated batch size, half of it at each other; by default as the target says.
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

    pipeline = pair_pipeline(pair)
    judging = judging or (pipeline.judging if pipeline else None)
    measured = judging or target.benchmark
    gated = measured.gated_batch_size
    sizes = tuple(sorted({gated, *(batch_sizes or measured.batch_sizes)}))
    notes: list[str] = []
    samples = _judged_by(data, pipeline, notes)
    chosen = _chosen_gates(gates, target, precision, samples is not None) or [
        parse(text) for text in (judging.gates if judging else DEFAULT_GATES)
    ]
    judged = [*chosen, *map(parse, target.gates), parse(f"parity <= {target.parity[precision]:g}")]
    calibration = _calibrated_by(calibrate, pipeline, precision, notes)
    if calibration is not None and samples is not None and all(gate.metric != "quantization.drop" for gate in judged):
        judged.append(parse(INTEGER_GATE))
    here = machine.describe(threads)
    accepted = frozenset(accept_licenses)
    seat = engines.Seat(target, engines.ensure(target, accept_licenses=accepted, progress=progress, ask=ask))
    controls = _controls(target, accepted, progress, ask, notes)
    integers = None
    if calibration is not None:
        definition = load_target(FLOATS)
        floats = engines.ensure(definition, accept_licenses=accepted, progress=progress, ask=ask)
        integers = trials.Integers(calibration, engines.Seat(definition, floats), tuple(keep_fp32))

    plan = latency.Plan(budget=_check_budget(budget) or target.benchmark.budget)
    path = _place(out, pair.name, target, precision)
    with bundle.create(path) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # in there, so that it never outlives the bundle's
            trial = trials.Trial(
                pair,
                seat,
                controls,
                here,
                precision,
                sizes,
                gated,
                folder,
                Path(scratch),
                progress,
                integers,
            )
            found = trials.conduct(trial, samples, plan, judged)
        bundle.finish(
            folder,
            trials.manifest(trial, found),
            trials.report(
                trial,
                found,
                judged,
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
        return exit_code(self.checks)


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
    rows = [Verdict("files", "fail" if damaged else "pass", "; ".join(damaged) or f"{len(manifest.files)} unaltered")]
    if damaged:
        return Verification(
            str(path), tuple(rows), ("The models were not run, since the files are not the ones tested.",)
        )
    definition = load_target(checking.find_target(shipped, target))
    made = shipped.report
    rows.append(Verdict("gates, when it was made", made.verdict, f"on {made.machine.processor}"))
    notes = []
    if files.folder_sha256(definition.folder) != manifest.target_sha256:
        notes.append(f"The target {definition.name} is defined otherwise than when the bundle was made.")
    here = machine.describe(threads)
    accepted = frozenset(accept_licenses)
    seat = engines.Seat(definition, engines.ensure(definition, accept_licenses=accepted, progress=progress, ask=ask))
    for size in manifest.batch_sizes:
        model = shipped.model(size)
        with closing(seat.open(model, batch_size=size, cpus=here.cpus)) as engine:
            outputs = batches.run(engine, shipped.golden_inputs, size)
            info = engine.info()
        found = parity.compare(outputs, shipped.golden_outputs(size), manifest.tolerance)
        detail = f"{model.name}: tolerance needed {found.required:.1e} of {found.tolerance:.0e}"
        rows.append(Verdict(f"golden outputs, batch {size}", "pass" if found.ok else "fail", detail))
        if size == manifest.gated_batch_size and manifest.supported_ops is not None:
            supported = info.get("supported_ops")
            same = supported is not None and supported >= manifest.supported_ops
            detail = f"{supported} of the operators on the fast path, {manifest.supported_ops} when it was made"
            rows.append(Verdict("supported_ops", "pass" if same else "fail", detail))
    notes += [
        f"The {what} is {info.get(key)} here, and was {before} when the bundle was made."
        for what, key, before in (
            ("runtime's version", "version", made.target.version),
            ("instruction set", "instruction_set", made.target.instruction_set),
        )
        if info.get(key) != before
    ]
    return Verification(str(path), tuple(rows), tuple(notes))


def check(
    new: str | Path,
    *,
    against: str | Path | None = None,
    self_test: bool = False,
    baseline: str | Path | None = None,
    save: str | Path | None = None,
    gates: Iterable[str] = (),
    budget: float = 60.0,
    data: str | Data | Iterable[Any] | None = None,
    twins: bool = True,
    target: str | None = None,
    against_target: str | None = None,
    out: str | Path = "checks",
    history: str | Path | None = None,
    threads: int | None = None,
    accept_licenses: Iterable[str] = (),
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Check:
    """Hold a bundle against an older one, itself, or stored ratios; one of the first four options says which.

    Args:
        against: an older bundle. Both are measured in turns on this machine, each in the runtime versions that it was
            made with.
        self_test: the new bundle against itself: how far can a verdict be trusted here?
        baseline: a file of stored ratios, for where the old bundle can't run.
        save: the file to store this bundle's ratio in, beside those of earlier checks of the same model and runtime
            (others make room): six of them, at different times, tell how far the ratio moves by itself.
        gates: to be judged by instead of `latency.p50.ratio <= 1.03` (1.10 beside stored ratios); those of the target
            stay.
        budget: seconds of measuring, at most. It ends early when the gates are decided.
        data: for accuracy on the same samples, with `against`.
        twins: measure the dense twins as well, with `against`, for a quarter of the budget: they tell a slower engine
            from a worse export or model.
        target, against_target: the folders of the targets, where they are not built-in ones.
        out: the parent of the check's own folder; nothing is written into a bundle.
        history: a file of JSON lines, to which one is added.

    Returns:
        what was found; its `passed` says whether every gate passed.

    Raises:
        AcdcExportError: see `errors` for the kinds. What was at `out` before is not lost.
    """
    kinds: dict[checking.Kind, bool] = {
        "against": against is not None,
        "self-test": self_test,
        "baseline": baseline is not None,
        "save": save is not None,
    }
    chosen = [kind for kind, given in kinds.items() if given]
    if len(chosen) != 1:
        raise UsageError(
            "A check is against one thing." if chosen else "Nothing was named to check against.",
            "Give one of --against OLD, --baseline FILE, --save FILE and --self-test.",
        )
    (kind,) = chosen
    if data is not None and kind != "against":
        raise UsageError("--data goes with --against only.", "It compares the accuracy of two bundles.")
    here = machine.describe(threads)
    options: dict[str, Any] = {
        "cpus": here.cpus,
        "accept_licenses": frozenset(accept_licenses),
        "ask": ask,
        "progress": progress,
    }
    contender = checking.prepare(Path(new), target, **options)
    manifest = contender.bundle.manifest
    source = baseline if baseline is not None else save
    chosen_gates, notes = checking.gates(
        kind,
        list(gates),
        data=data is not None,
        target=contender.seat.target.gates,
        tolerance=manifest.tolerance,
    )
    setup = checking.Setup(
        kind=kind,
        new=contender,
        old=_old(contender, against, against_target or target, options) if kind in ("against", "self-test") else None,
        stored=checking.baseline.read(Path(baseline), manifest) if baseline is not None else None,
        source=None if source is None else str(source),
        data=None if data is None else _as_data(data),
        gates=tuple(chosen_gates),
        plan=latency.Plan(budget=_check_budget(budget) or budget),
        machine=here,
        progress=progress,
        twins=twins,
        notes=tuple(notes),
    )
    there = checking.baseline.existing(Path(save), manifest) if save is not None else None
    if history is not None:
        checking.check_history(Path(history))
    place = Path(out) / contender.bundle.path.resolve().name
    checking.check_place(place)
    found, samples = checking.conduct(setup)
    entry = checking.entry(found) if save is not None and found.passed else None
    if save is not None:
        found = replace(found, notes=(*found.notes, *checking.baseline.fate(Path(save), there, entry)))
    checking.write(place, found, samples)
    if save is not None and entry is not None:
        checking.baseline.save(Path(save), manifest, entry)
    if history is not None:
        checking.append_history(Path(history), found)
    return found


def _old(new: Contender, against: str | Path | None, target: str | None, options: dict[str, Any]) -> Contender:
    """What the new bundle is held against; itself where nothing is named."""
    if against is None:
        return new
    try:
        return checking.prepare(Path(against), target, **options)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(
            f"The old bundle can't run here: {error.message}",
            "Check with stored ratios instead: --save FILE where it runs, and --baseline FILE here.",
        ) from error


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


def _check_budget(budget: float | None) -> float | None:
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget {budget:g}: that is no time to measure in.", "Give seconds, such as 60.")
    return budget


def _chosen_gates(texts: Iterable[str], target: Target, precision: str, data: bool) -> list[Gate]:
    """The gates that a user named. Raises `UsageError` for what can't be parsed or won't be measured."""
    unmeasured: dict[str, str] = {}
    if not data:
        unmeasured |= dict.fromkeys(
            ("accuracy.drop", "accuracy.sparse", "quantization.drop"), "give samples with --data"
        )
    if precision == "fp32":
        unmeasured["quantization.drop"] = "fp32 has no integers; --precision int8 has"
    if not target.benchmark.controls:
        unmeasured["speedup.vs_control"] = f"the target {target.name} has no controls"
    try:
        return [parse(text, unmeasured) for text in texts]
    except GateError as error:
        raise UsageError(str(error), "docs/design.md lists what gates may ask for.") from error


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


def _calibrated_by(
    given: str | Data | Iterable[Any] | None, pipeline: Pipeline | None, precision: str, notes: list[str]
) -> Data | None:
    """The calibration samples; None where none are needed. Raises `UsageError` where some are, and there are none."""
    if precision == "fp32":
        if given is not None:
            _as_data(given)
            notes.append(f"Calibration data are not needed at {precision} and were not used.")
        return None
    if given is not None:
        found = _as_data(given)
    elif pipeline is not None:
        found = load_data(pipeline.data.train, trusted=False)
    else:
        raise UsageError(
            f"{precision} needs samples to find the ranges of activations with, and the pair names none.",
            "Give some of the training split with --calibrate.",
        )
    if pipeline is not None and found.spec == pipeline.data.judge:
        notes.append(f"Ranges were calibrated on {found.spec}, which the pair is judged by.")
    return found


def _as_data(given: str | Data | Iterable[Any]) -> Data:
    if isinstance(given, str):
        return load_data(given)
    return given if isinstance(given, Data) else Data.of(given)


def _controls(
    target: Target, accepted: frozenset[str], progress: Progress, ask: Ask | None, notes: list[str]
) -> tuple[engines.Seat, ...]:
    """The target's controls that can run here; a note for each that can't."""
    seats = []
    for name in target.benchmark.controls:
        control = load_target(name)
        try:
            environment = engines.ensure(control, accept_licenses=accepted, progress=progress, ask=ask)
        except RuntimeUnavailable as error:
            notes.append(f"The control {name} was not measured: {error.message}")
        else:
            seats.append(engines.Seat(control, environment))
    return tuple(seats)
