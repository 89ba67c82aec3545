"""The steps of a check: measure a bundle beside an older one, itself, or stored ratios, and judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from ..config import DEFAULT_GATES
from ..data import Data
from ..errors import EngineError, UsageError
from ..evidence import accuracy, latency, metrics, stats
from ..evidence.accuracy import Accuracy
from ..evidence.engine import Engine
from ..evidence.gates import Gate, GateError, Verdict, judge, parse, sampled, settled
from ..evidence.latency import Alternation, Latency, Plan, Samples
from ..evidence.metrics import Facts, Scope
from ..evidence.parity import Parity
from ..machine import Machine, quota_notes
from ..pair import Half, named
from ..progress import Progress
from ..records.check import BundleFacts, Check, Kind
from ..version import __version__
from . import baseline, causes
from .baseline import Baseline, Entry, MachineClass
from .loaded import LoadedBundle

REGRESSION = "latency.p50.ratio <= 1.03"
"""The default gate: it finds a slowdown of 3 %, and passes where there is none."""

STORED = "latency.p50.ratio <= 1.10"
"""The default gate beside stored ratios. They move from check to check with what else the machine does."""

TWINS = 0.25
"""The share of the budget for the dense twins: enough to see that an engine got slower."""

_FEWEST_STORED = 4
"""Launches that a stored ratio needs."""


@dataclass(frozen=True)
class Setup:
    """What a check measures: the bundle, what it is compared with, and how long."""

    kind: Kind
    new: LoadedBundle
    old: LoadedBundle | None
    stored: Baseline | None
    source: str | None  # the file of the stored ratios
    data: Data | None
    gates: tuple[Gate, ...]
    plan: Plan
    machine: Machine
    progress: Progress
    twins: bool = True  # measure the dense twins of two bundles, too
    notes: tuple[str, ...] = ()

    @property
    def halves(self) -> tuple[Half, ...]:
        """What of the bundles runs."""
        with_twins = self.kind in ("save", "baseline") or (self.kind == "against" and self.twins)
        return ("sparse", "dense") if with_twins else ("sparse",)

    def admit(self, folder: Path) -> Setup:
        """The same, with it decided what is loaded for compiled models; `folder` is for those that are built anew."""
        folders = {name: folder / name for name in ("new", "old")}
        for place in folders.values():
            place.mkdir()
        new = self.new.admit(self.halves, folders["new"], self.progress)
        if self.old is None or self.old is self.new:
            return replace(self, new=new, old=self.old and new, notes=(*self.notes, *new.admitted.notes))
        old = self.old.admit(self.halves, folders["old"], self.progress)
        return replace(self, new=new, old=old, notes=(*self.notes, *new.admitted.notes, *old.admitted.notes))


def gates(
    kind: Kind, texts: Sequence[str], *, data: bool, target: Sequence[str], tolerance: float
) -> tuple[list[Gate], list[str]]:
    """The gates of a check: the named ones or else the default, and always parity and those of the target.

    Args:
        texts: the named gates.
        data: whether there are samples to judge accuracy by.
        target: the target's own gates.
        tolerance: the limit of parity.

    Returns:
        the gates, and a note for each of the target's gates that this kind of check can't judge.

    Raises:
        UsageError: a named gate can't be parsed, or asks for what this kind of check doesn't measure.
    """
    unmeasured = metrics.unmeasured(Scope(kind=kind, samples=data))
    latency_gate = STORED if kind == "baseline" else REGRESSION
    defaults = [] if kind == "save" else [latency_gate, *([DEFAULT_GATES[0]] if data else [])]
    chosen = []
    for text in texts or defaults:
        try:
            chosen.append(parse(text, unmeasured))
        except GateError as error:
            raise UsageError(str(error), "docs/design.md lists what gates may ask for.") from error
    fixed = [parse(text) for text in (*target, f"parity <= {tolerance:g}")]
    skipped = [gate for gate in fixed if gate.metric in unmeasured]
    notes = [f"The target's gate '{gate.text}' was not judged: {unmeasured[gate.metric]}." for gate in skipped]
    return chosen + [gate for gate in fixed if gate not in skipped], notes


def conduct(setup: Setup) -> tuple[Check, dict[str, Samples]]:
    """Measure, judge, and tell causes apart.

    A compiled model that was neither built here nor is trusted is built anew first.

    Returns:
        the check, and the raw samples of the sparse halves and of the twins.

    Raises:
        EngineError: an engine can't be opened. One that dies later leaves its gates not measured.
        UsageError: the two bundles, or the samples, don't fit together.
        BundleError, RuntimeUnavailable: a compiled model was altered, or can't be built anew.
    """
    if setup.old:
        _check_comparable(setup.new, setup.old, outputs=setup.data is not None)
    with TemporaryDirectory(prefix="acdc-export-") as folder:
        return _conduct(setup.admit(Path(folder)))


def _conduct(setup: Setup) -> tuple[Check, dict[str, Samples]]:
    start = monotonic()
    alpha = stats.ALPHA / max(1, sampled(setup.gates))
    static = _static_checks(setup, alpha)
    new, old = static.new, static.old
    entry = setup.stored.of(machine_class(setup.machine, new)) if setup.stored else None
    with setup.progress.task("latency", setup.plan.budget) as advance:
        timed = _measure(setup, entry, alpha, advance)
    measured = metrics.values(facts(setup.kind, entry, timed.sparse, static))
    check = Check(
        kind=setup.kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        seconds=round(monotonic() - start, 1),
        budget=setup.plan.budget,
        machine=setup.machine,
        batch_size=setup.new.batch_size,
        new=new,
        old=old,
        baseline=setup.source,
        latency=timed.sparse,
        twins=timed.twins,
        accuracy=static.accuracy,
        measured=measured,
        gates=tuple([judge(gate, measured) for gate in setup.gates] + _latency_verdicts(setup, timed.sparse)),
        causes=causes.find(new, old, timed.sparse, timed.twins) if old else (),
        notes=(
            *setup.notes,
            *(baseline.notes(entry) if entry else ()),
            *_accuracy_notes(setup, static.accuracy),
            *_notes(setup, new, old, timed.sparse),
            *timed.notes,
        ),
    )
    return check, timed.samples


def _check_comparable(new: LoadedBundle, old: LoadedBundle, *, outputs: bool) -> None:
    """Raises `UsageError` unless both bundles take the same inputs, and give the same `outputs` where these count."""
    properties = [
        ("inputs", new.bundle.manifest.inputs, old.bundle.manifest.inputs),
        ("batch size that gates judge", new.batch_size, old.batch_size),
    ]
    if outputs:
        properties.append(("outputs", new.bundle.manifest.outputs, old.bundle.manifest.outputs))
    for name, new_value, old_value in properties:
        if new_value != old_value:
            raise UsageError(
                f"{new.bundle.path} and {old.bundle.path} can't be compared: the {name} differ, {new_value} and "
                f"{old_value}.",
                "Compare bundles of the same network, exported for the same batch size.",
            )


@dataclass(frozen=True)
class StaticChecks:
    """What a check finds out before anything is timed."""

    new: BundleFacts
    old: BundleFacts | None
    golden: Parity  # of the new bundle's golden outputs
    accuracy: Accuracy | None  # of both sparse halves; the old bundle's is the reference


def _static_checks(setup: Setup, alpha: float) -> StaticChecks:
    """Run both bundles on their golden inputs, and on the same samples."""
    with ExitStack() as stack:
        engine = stack.enter_context(closing(setup.new.open()))
        golden = setup.new.golden_parity(engine)
        new = setup.new.facts(engine, golden)
        if setup.old is None:
            return StaticChecks(new, None, golden, None)
        old_engine = stack.enter_context(closing(setup.old.open()))
        old = setup.old.facts(old_engine, setup.old.golden_parity(old_engine))
        return StaticChecks(new, old, golden, _accuracy(setup, engine, old_engine, alpha))


def _accuracy(setup: Setup, new: Engine, old: Engine, alpha: float) -> Accuracy | None:
    if setup.data is None:
        return None
    manifest = setup.new.bundle.manifest
    size = 8 * setup.new.batch_size  # samples read at once; the engines get them in their own batches
    return accuracy.measure(
        new,
        old,
        named(setup.data, setup.new.expected, size),
        output=manifest.judged_output or manifest.outputs[0].name,
        batch_size=setup.new.batch_size,
        alpha=alpha,
    )


@dataclass(frozen=True)
class _Timed:
    """What timing found: of the sparse halves (of stored ratios: a half and its twin), and of two bundles' twins."""

    sparse: Latency
    twins: Latency | None
    samples: dict[str, Samples]  # by prefix: "" for the first, "twin." for the twins
    notes: list[str]


def _measure(setup: Setup, entry: Entry | None, alpha: float, advance: Callable[..., None]) -> _Timed:
    """Time the sparse halves until the gates are decided; then, of two bundles, the twins for their share."""
    run = partial(
        latency.measure,
        inputs=setup.new.inputs(),
        batch_size=setup.new.batch_size,
        alpha=alpha,
        cpus=setup.machine.cpus,
    )
    share = 1 - TWINS if setup.kind == "against" and setup.twins else 1.0
    taken = run(
        _variants(setup),
        # More measuring does not narrow what the stored checks leave open: looking early would only spend its error.
        plan=replace(setup.plan, budget=share * setup.plan.budget, looks=() if entry else setup.plan.looks),
        # A stored ratio is used for long: it gets the whole budget.
        decided=None if setup.kind == "save" else partial(_decided, setup, entry),
        advance=partial(advance, detail="sparse halves" if setup.old else "sparse half and twin"),
    )
    sparse, samples = taken.latency(), {"": taken.samples()}
    if share == 1 or setup.old is None or sparse.failure:
        return _Timed(sparse, None, samples, [])
    try:
        taken = run(
            {"old": partial(setup.old.open, "dense"), "new": partial(setup.new.open, "dense")},
            plan=replace(setup.plan, budget=TWINS * setup.plan.budget, looks=()),
            advance=partial(advance, detail="twins"),
        )
    except EngineError as error:  # the twins tell causes apart; the verdict does not depend on them
        return _Timed(sparse, None, samples, [f"The twins were not measured: {error.message}"])
    twins = taken.latency()
    samples["twin."] = taken.samples()
    return _Timed(sparse, twins, samples, [f"The twins: {note}" for note in latency.notes(twins)])


def _decided(setup: Setup, entry: Entry | None, taken: Alternation) -> bool:
    return settled(setup.gates, metrics.timed_values(_time_facts(setup.kind, entry, taken.latency())))


def _variants(setup: Setup) -> dict[str, latency.Open]:
    """The variants that take turns; ratios are over the first."""
    if setup.old:
        return {"old": setup.old.open, "new": setup.new.open}
    return {"sparse": setup.new.open, "dense": partial(setup.new.open, "dense")}


def facts(kind: Kind, entry: Entry | None, sparse: Latency, static: StaticChecks) -> Facts:
    """All that metrics are computed from; `entry` holds the stored checks that this one is compared with."""
    new = static.new
    return replace(
        _time_facts(kind, entry, sparse),
        accuracy=static.accuracy,
        parities=(static.golden,),
        zeros=new.zeros,
        total=new.total,
        size=new.size,
        supported_ops=new.supported_ops,
    )


def _time_facts(kind: Kind, entry: Entry | None, sparse: Latency) -> Facts:
    """The facts that come from time."""
    variant = sparse.variants.get("new") or sparse.variants.get("sparse")
    memory = variant.memory if variant else None
    if kind in ("against", "self-test"):
        return Facts(peak_memory=memory, p50_ratio=sparse.ratios.get("new"), p99_ratio=sparse.tails.get("new"))
    speedup = sparse.ratios.get("dense")
    relative = baseline.relative(speedup, entry, sparse.alpha) if speedup and entry else None
    return Facts(peak_memory=memory, speedup=speedup, p50_ratio=relative)


def _latency_verdicts(setup: Setup, sparse: Latency) -> list[Verdict]:
    """Verdicts beside the gates: an engine that died, or ratios that are too vague to store, are never green."""
    if sparse.failure:
        return [Verdict("latency", "not measured", sparse.failure)]
    if setup.kind == "save" and sparse.launches < _FEWEST_STORED:
        return [Verdict("launches", "inconclusive", f"{sparse.launches} of {_FEWEST_STORED}: give more with --budget")]
    return []


def machine_class(machine: Machine, bundle_facts: BundleFacts) -> MachineClass:
    """The class of this machine, as the bundle's engine sees it."""
    return MachineClass(machine.processor, bundle_facts.instruction_set, len(machine.cpus))


def _accuracy_notes(setup: Setup, right: Accuracy | None) -> list[str]:
    """Where the accuracy is so odd that the samples may be to blame."""
    if right is None or setup.old is None:
        return []
    return accuracy.doubts(
        right,
        {
            f"{age} bundle's sparse half": loaded.bundle.report.pair.metrics.get("sparse", {})
            for age, loaded in (("new", setup.new), ("old", setup.old))
        },
    )


def _notes(setup: Setup, new: BundleFacts, old: BundleFacts | None, sparse: Latency) -> list[str]:
    notes = [*quota_notes(len(setup.machine.cpus)), *latency.notes(sparse)]
    if len(setup.machine.cpus) == 1:
        notes.append("One core was measured on: this program shares it with what it measures.")
    if old and setup.old and old.parity > setup.old.bundle.manifest.tolerance:
        notes.append(f"The old bundle's golden outputs need a tolerance of {old.parity:.1e} here.")
    if old and new.name != old.name:
        notes.append(f"The bundles are of different pairs, {new.name} and {old.name}.")
    bundles = [setup.new, *([setup.old] if setup.old and setup.kind == "against" else [])]
    return notes + [note for loaded in bundles for note in loaded.environment_notes()]
