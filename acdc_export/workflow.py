"""The story on one page: `train`, `export`, `verify`, and `obtain` and `run` that combine them.

Everything right of the pair works on ONNX and numpy; torch is imported by `train` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundle, checking, engines, files, machine, resources
from .bundle import Bundle, comparison
from .config import Judging, Pipeline, Target, load_pipeline, load_target, parse_pipeline
from .data import load as load_data
from .errors import RuntimeUnavailable, UsageError, nearest
from .evidence import batches, latency, parity
from .evidence.gates import Verdict
from .extras import extra
from .options import Ask, DeploymentRequest, Options, Outcome, Samples, as_data, check_budget
from .pair import Pair, check_place
from .progress import SILENT, Progress
from .records.verification import Verification

if TYPE_CHECKING:
    from .checking import Check, LoadedBundle
    from .records.rehearsal import Rehearsal

ALL = "all"
"""Among targets or precisions: every one that can be had."""


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
    precisions: Iterable[str] = (),
    runs: str | Path = "runs",
    **options: Any,
) -> Outcome:
    """A pipeline from its start to its end: `obtain` its pair, then deploy it as `export` or `compare` does.

    Whether all targets can run here and may be written is found out before anything is trained.

    Args:
        targets: others than the pipeline's own; see `compare`.
        precisions: see `compare`.
        options: as for `export`.

    Raises:
        AcdcExportError: see `errors` for the kinds.
    """
    pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    # The user named this pipeline, so that code which it names as data may run, unlike that of a received pair.
    options["data"] = as_data(pipeline.data.judge if options.get("data") is None else options["data"])
    asked = _options(judging=pipeline.judging, **options)
    wanted = _request(targets or pipeline.judging.targets, tuple(precisions), asked)
    if asked.calibrate is None and any(precision == "int8" for _, precision in wanted.deployments):
        asked = replace(asked, calibrate=load_data(pipeline.data.train))
    for target, precision in wanted.deployments:
        bundle.check_place(asked.place(pipeline.name, target, precision))
        asked.install(target)
    if wanted.several:
        files.check_place(asked.comparison_place(pipeline.name), comparison.MARKER)
    return _deploy(obtain(pipeline, runs, progress=asked.progress), wanted, asked)


def export(
    pair: Pair | str | Path,
    target: Target | str = "cpu",
    *,
    precision: str = "fp32",
    judging: Judging | None = None,
    data: Samples = None,
    calibrate: Samples = None,
    keep_fp32: Iterable[str] = (),
    out: str | Path = "bundles",
    batch_sizes: Iterable[int] = (),
    gates: Iterable[str] = (),
    budget: float | None = None,
    threads: int | Iterable[int] | None = None,
    require_deployable: bool = False,
    accept_licenses: Iterable[str] = (),
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Put a pair into a target's runtime, judge it against its twin, and write the bundle `out`/PAIR-TARGET.

    Args:
        precision: one that the target offers; another than fp32 is told in the bundle's name.
        judging: batch sizes and gates; by default those of the pair's pipeline, or the target's where it has none.
        data: what accuracy is judged by: a spec as for `data.load`, or an iterable of (inputs, labels) batches. By
            default what the pair's pipeline names.
        calibrate: what int8 finds its ranges with, from the training split; labels are not looked at. By default what
            the pair's pipeline trains on. fp32 needs none.
        keep_fp32: layers that stay in float in int8, by their weights' names.
        batch_sizes: measured beside the gated one, which the pipeline fixes; by default as the pipeline says.
        gates: to be judged by instead of the pipeline's, `METRIC >= LIMIT`; those of the target stay.
        budget: seconds of measuring at the gated batch size, half of it at each other; by default as the target says.
        threads: physical cores to use; all of them by default. Of several numbers the gates judge the greatest, and
            each other is measured as well.
        accept_licenses: runtimes whose licenses the user accepts.
        ask: shows a license notice and returns whether it was accepted; None where nobody can be asked.

    Returns:
        the bundle; its `passed` says whether every gate passed.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    asked = _options(
        judging=judging,
        data=data,
        calibrate=calibrate,
        keep_fp32=keep_fp32,
        out=out,
        batch_sizes=batch_sizes,
        gates=gates,
        budget=budget,
        threads=threads,
        require_deployable=require_deployable,
        accept_licenses=accept_licenses,
        ask=ask,
        progress=progress,
    )
    pair = Pair.load(pair) if not isinstance(pair, Pair) else pair
    target = load_target(target) if isinstance(target, str) else target
    _check_precision(target, precision)
    (made,) = _deploy(pair, DeploymentRequest(((target, precision),)), asked).bundles
    return made


def compare(
    pair: Pair | str | Path,
    targets: Iterable[str | Target] = (ALL,),
    *,
    precisions: Iterable[str] = (),
    **options: Any,
) -> Outcome:
    """Put a pair into several deployments, measure them in turns, and write a bundle of each and their comparison.

    Args:
        targets: `"all"` among them stands for every built-in one that can run here; then one that passes is enough,
            and what can't be had is listed. Otherwise each has to pass.
        precisions: of each target; `"all"` for all that it offers. By default fp32, and of all targets all.
        options: as for `export`.

    Raises:
        AcdcExportError: see `errors` for the kinds. Nothing that was at `out` before is lost.
    """
    asked = _options(**options)
    pair = Pair.load(pair) if not isinstance(pair, Pair) else pair
    return _deploy(pair, _request(targets, tuple(precisions), asked), asked)


def _options(
    *,
    data: Samples = None,
    calibrate: Samples = None,
    keep_fp32: Iterable[str] = (),
    out: str | Path = "bundles",
    batch_sizes: Iterable[int] = (),
    gates: Iterable[str] = (),
    budget: float | None = None,
    threads: int | Iterable[int] | None = None,
    accept_licenses: Iterable[str] = (),
    **others: Any,
) -> Options:
    """The options of `export`, as they are passed on. Raises `UsageError` for what can't be meant."""
    asked = Options(
        data=None if data is None else as_data(data),
        calibrate=None if calibrate is None else as_data(calibrate),
        keep_fp32=tuple(keep_fp32),
        out=Path(out),
        batch_sizes=tuple(batch_sizes),
        gates=tuple(gates),
        budget=check_budget(budget),
        threads=() if threads is None else (threads,) if isinstance(threads, int) else tuple(threads),
        accept_licenses=frozenset(accept_licenses),
        **others,
    )
    asked.machine()
    return asked


def _request(targets: Iterable[str | Target], precisions: tuple[str, ...], asked: Options) -> DeploymentRequest:
    """The deployments that are meant. Of a survey only those that can run here: what they need is installed now.

    Raises:
        UsageError: an unknown target or precision, two targets of one name.
        RuntimeUnavailable: a survey of nothing.
    """
    named = list(targets)
    survey = ALL in named
    if survey:
        named = [*resources.names("targets"), *(one for one in named if one != ALL)]
    definitions: dict[str, Target] = {}
    for target in (load_target(one) if isinstance(one, str) else one for one in named):
        if definitions.setdefault(target.name, target) != target:
            raise UsageError(f"Two targets are named {target.name}.", "Give one of them another name.")
    missing: dict[str, str] = {}
    found: dict[str, tuple[Target, str]] = {}
    for target in definitions.values():
        try:
            if survey:
                asked.install(target)
        except RuntimeUnavailable as error:
            missing[target.name] = error.message
            continue
        every = list(target.precisions)
        for precision in every if ALL in precisions or (survey and not precisions) else precisions or ("fp32",):
            if survey and precision not in every:
                missing[target.at(precision)] = f"it offers {', '.join(every)}"
            else:
                _check_precision(target, precision)
                found[target.at(precision)] = (target, precision)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise RuntimeUnavailable(f"Nothing can be compared here. {reasons}", "`acdc-export targets list` tells more.")
    return DeploymentRequest(tuple(found.values()), missing, survey)


def _deploy(pair: Pair, wanted: DeploymentRequest, asked: Options) -> Outcome:
    with extra("export"):
        from .evaluation import deploying
    return deploying.deploy(pair, wanted, asked, pair_pipeline(pair))


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
    installed = engines.InstalledTarget(
        definition, engines.ensure(definition, accept_licenses=accepted, progress=progress, ask=ask)
    )
    for size in manifest.batch_sizes:
        model = shipped.model(size)
        with closing(installed.open(model, batch_size=size, cpus=here.cpus, precision=manifest.precision)) as engine:
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
    data: Samples = None,
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
    loaded = checking.open_bundle(Path(new), target, **options)
    manifest = loaded.bundle.manifest
    source = baseline if baseline is not None else save
    chosen_gates, notes = checking.gates(
        kind,
        list(gates),
        data=data is not None,
        target=loaded.installed.target.gates,
        tolerance=manifest.tolerance,
    )
    setup = checking.Setup(
        kind=kind,
        new=loaded,
        old=_old(loaded, against, against_target or target, options) if kind in ("against", "self-test") else None,
        stored=checking.baseline.read(Path(baseline), manifest) if baseline is not None else None,
        source=None if source is None else str(source),
        data=None if data is None else as_data(data),
        gates=tuple(chosen_gates),
        plan=latency.Plan(budget=check_budget(budget) or budget),
        machine=here,
        progress=progress,
        twins=twins,
        notes=tuple(notes),
    )
    there = checking.baseline.existing(Path(save), manifest) if save is not None else None
    if history is not None:
        checking.check_history(Path(history))
    place = Path(out) / loaded.bundle.path.resolve().name
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


def _old(new: LoadedBundle, against: str | Path | None, target: str | None, options: dict[str, Any]) -> LoadedBundle:
    """What the new bundle is held against; itself where nothing is named."""
    if against is None:
        return new
    try:
        return checking.open_bundle(Path(against), target, **options)
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


def _check_precision(target: Target, precision: str) -> None:
    known = list(target.precisions)
    if precision not in known:
        raise UsageError(
            f"The target {target.name} has no precision '{precision}'{nearest(precision, known)}.",
            f"It offers {', '.join(known)}.",
        )
