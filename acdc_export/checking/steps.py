"""A bundle beside an older one, itself, or stored ratios: what is measured, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic

from ..config import DEFAULT_GATES
from ..data import Data
from ..errors import EngineError, UsageError
from ..evidence import accuracy, latency, stats
from ..evidence.accuracy import Accuracy
from ..evidence.gates import Gate, GateError, Measurement, Verdict, judge, parse, sampled, settled
from ..evidence.latency import Latency, Plan, Samples
from ..machine import Machine
from ..pair import named
from ..progress import Progress
from ..records.check import BundleFacts, Check, Kind
from ..version import __version__
from . import baseline, causes
from .baseline import Baseline, Entry, MachineClass
from .loaded import LoadedBundle

REGRESSION = "latency.p50.ratio <= 1.03"
"""What a bundle has to reach where no gate is named: a slowdown of 3 % is found, and none is none."""

STORED = "latency.p50.ratio <= 1.10"
"""The same beside stored ratios, which move with what else the machine does, from one check to the next."""

TWINS = 0.25
"""The share of the budget that goes to the dense twins: enough to see an engine that got slower."""

_FEWEST_STORED = 4
"""Launches behind a ratio that is stored."""

_ALONE = {
    "quantization.drop": "`check` has no float half to compare with; an export has",
    "speedup.vs_control": "`check` runs no controls; an export does",
}
_BUNDLES = {**_ALONE, "speedup": "`check` holds bundles against each other; an export measures the speed-up"}
_NO_TWO = {
    "accuracy.drop": "there is no older bundle to compare with",
    "accuracy.sparse": "samples are judged with --against only",
    "latency.p99.ratio": "a baseline holds medians",
}
_UNMEASURED: dict[Kind, Mapping[str, str]] = {
    "against": _BUNDLES,
    "self-test": {**_BUNDLES, **dict.fromkeys(("accuracy.drop", "accuracy.sparse"), "a self-test is of latency")},
    "baseline": {**_ALONE, **_NO_TWO},
    "save": {**_ALONE, **_NO_TWO, "latency.p50.ratio": "nothing is compared while ratios are stored"},
}


@dataclass(frozen=True)
class Setup:
    """What is checked, beside what, and how long."""

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


def gates(
    kind: Kind, texts: Sequence[str], *, data: bool, target: Sequence[str], tolerance: float
) -> tuple[list[Gate], list[str]]:
    """The gates of a check: those that were named, else the default, and always the target's own and parity.

    Also a note for each of the target's that this kind of check can't judge.

    Raises:
        UsageError: one can't be parsed, or asks for what this kind of check doesn't measure.
    """
    unmeasured = dict(_UNMEASURED[kind])
    if kind == "against" and not data:
        unmeasured |= dict.fromkeys(("accuracy.drop", "accuracy.sparse"), "give samples with --data")
    latency_gate = STORED if kind == "baseline" else REGRESSION
    defaults = [] if kind == "save" else [latency_gate, *([DEFAULT_GATES[0]] if data else [])]
    found = []
    for text in texts or defaults:
        try:
            found.append(parse(text, unmeasured))
        except GateError as error:
            raise UsageError(str(error), "docs/design.md lists what gates may ask for.") from error
    fixed = [parse(text) for text in (*target, f"parity <= {tolerance:g}")]
    left = [gate for gate in fixed if gate.metric in unmeasured]
    notes = [f"The target's gate '{gate.text}' was not judged: {unmeasured[gate.metric]}." for gate in left]
    return found + [gate for gate in fixed if gate not in left], notes


def conduct(setup: Setup) -> tuple[Check, dict[str, Samples]]:
    """Measure, judge, and tell causes apart; also the raw samples of the sparse halves and of the twins.

    Raises:
        EngineError: an engine can't be opened. One that dies later leaves its gates not measured.
        UsageError: the two bundles, or the samples, don't fit together.
    """
    begun = monotonic()
    if setup.old:
        _check_alike(setup.new, setup.old, setup.data is not None)
    alpha = stats.ALPHA / max(1, sampled(setup.gates))
    new, old, right = _examine(setup, alpha)
    entry = setup.stored.of(machine_class(setup.machine, new)) if setup.stored else None
    with setup.progress.task("latency", setup.plan.budget) as advance:
        sparse, twins, samples, notes = _measure(setup, entry, alpha, advance)
    measured = {
        **_timed(setup.kind, entry, sparse),
        "accuracy.drop": right.drop if right else None,
        "accuracy.sparse": right.sparse if right else None,
        "memory.peak": _memory(sparse),
        "parity": Measurement.exact(new.parity),
        "parity.max_abs": Measurement.exact(new.max_abs),
        "size": Measurement.exact(new.size),
        "sparsity": None if new.sparsity is None else Measurement.exact(new.sparsity),
        "supported_ops": None if new.supported_ops is None else Measurement.exact(new.supported_ops),
    }
    found = Check(
        kind=setup.kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        seconds=round(monotonic() - begun, 1),
        budget=setup.plan.budget,
        machine=setup.machine,
        batch_size=setup.new.batch_size,
        new=new,
        old=old,
        baseline=setup.source,
        latency=sparse,
        twins=twins,
        accuracy=right,
        measured=measured,
        gates=tuple([judge(gate, measured) for gate in setup.gates] + _beside_gates(setup, sparse)),
        causes=causes.find(new, old, sparse, twins) if old else (),
        notes=(*setup.notes, *(baseline.notes(entry) if entry else ()), *_notes(setup, new, old, sparse), *notes),
    )
    return found, samples


def _check_alike(new: LoadedBundle, old: LoadedBundle, answers: bool) -> None:
    """Two bundles can be compared where both take the same inputs, and where `answers` count, give the same outputs.

    Raises `UsageError`.
    """
    asked = [
        ("inputs", new.bundle.manifest.inputs, old.bundle.manifest.inputs),
        ("batch size that gates judge", new.batch_size, old.batch_size),
    ]
    if answers:
        asked.append(("outputs", new.bundle.manifest.outputs, old.bundle.manifest.outputs))
    for what, one, other in asked:
        if one != other:
            raise UsageError(
                f"{new.bundle.path} and {old.bundle.path} can't be compared: the {what} differ, {one} and {other}.",
                "Compare bundles of the same network, exported for the same batch size.",
            )


def _examine(setup: Setup, alpha: float) -> tuple[BundleFacts, BundleFacts | None, Accuracy | None]:
    """Both bundles on this machine, before anything is timed: golden outputs, and accuracy on the same samples."""
    with ExitStack() as stack:
        new = stack.enter_context(closing(setup.new.open()))
        old = stack.enter_context(closing(setup.old.open())) if setup.old else None
        sides = setup.new.examine(new), setup.old.examine(old) if setup.old and old else None
        if setup.data is None or old is None:
            return *sides, None
        manifest = setup.new.bundle.manifest
        size = 8 * setup.new.batch_size  # samples read at once; the engines get them in their own batches
        found = accuracy.measure(
            new,
            old,
            named(setup.data, manifest.inputs, size),
            output=manifest.outputs[0].name,
            batch_size=setup.new.batch_size,
            alpha=alpha,
        )
        return *sides, found


def _measure(
    setup: Setup, entry: Entry | None, alpha: float, advance: Callable[..., None]
) -> tuple[Latency, Latency | None, dict[str, Samples], list[str]]:
    """The sparse halves until the gates are decided; then, of two bundles, the twins for their share, with notes."""
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
        # What the stored checks leave open does not shrink with measuring: looking early would only spend its error.
        plan=replace(setup.plan, budget=share * setup.plan.budget, looks=() if entry else setup.plan.looks),
        # What is stored is used for long: it gets the whole budget.
        decided=None
        if setup.kind == "save"
        else lambda found: settled(setup.gates, _timed(setup.kind, entry, found.latency())),
        advance=partial(advance, detail="sparse halves" if setup.old else "sparse half and twin"),
    )
    found, samples = taken.latency(), {"": taken.samples()}
    if share == 1 or setup.old is None or found.failure:
        return found, None, samples, []
    try:
        twins = run(
            {"old": partial(setup.old.open, "dense"), "new": partial(setup.new.open, "dense")},
            plan=replace(setup.plan, budget=TWINS * setup.plan.budget, looks=()),
            advance=partial(advance, detail="twins"),
        )
    except EngineError as error:  # they tell causes apart; the verdict does not hang on them
        return found, None, samples, [f"The twins were not measured: {error.message}"]
    samples["twin."] = twins.samples()
    return found, twins.latency(), samples, [f"The twins: {note}" for note in latency.notes(twins.latency())]


def _variants(setup: Setup) -> dict[str, latency.Open]:
    """What takes turns; the first is what the others are held against."""
    if setup.old:
        return {"old": setup.old.open, "new": setup.new.open}
    return {"sparse": setup.new.open, "dense": partial(setup.new.open, "dense")}


def _timed(kind: Kind, entry: Entry | None, found: Latency) -> dict[str, Measurement | None]:
    """The metrics that come of time."""
    if kind in ("against", "self-test"):
        return {"latency.p50.ratio": found.ratios.get("new"), "latency.p99.ratio": found.tails.get("new")}
    speedup = found.ratios.get("dense")
    compared = baseline.relative(speedup, entry, found.alpha) if speedup and entry else None
    return {"speedup": speedup, "latency.p50.ratio": compared}


def _beside_gates(setup: Setup, found: Latency) -> list[Verdict]:
    """What is never green, whatever the gates ask for: an engine that died, and ratios that are too vague to store."""
    if found.failure:
        return [Verdict("latency", "not measured", found.failure)]
    if setup.kind == "save" and found.launches < _FEWEST_STORED:
        return [Verdict("launches", "inconclusive", f"{found.launches} of {_FEWEST_STORED}: give more with --budget")]
    return []


def machine_class(machine: Machine, side: BundleFacts) -> MachineClass:
    """The class of this machine, as the side's engine sees it."""
    return MachineClass(machine.processor, side.instruction_set, len(machine.cpus))


def _memory(found: Latency) -> Measurement | None:
    variant = found.variants.get("new") or found.variants.get("sparse")
    return Measurement.exact(variant.memory) if variant else None


def _notes(setup: Setup, new: BundleFacts, old: BundleFacts | None, sparse: Latency) -> list[str]:
    found = latency.notes(sparse)
    if len(setup.machine.cpus) == 1:
        found.append("One core was measured on: this program shares it with what it measures.")
    if old and setup.old and old.parity > setup.old.bundle.manifest.tolerance:
        found.append(f"The old bundle's golden outputs need a tolerance of {old.parity:.1e} here.")
    if old and new.name != old.name:
        found.append(f"The bundles are of different pairs, {new.name} and {old.name}.")
    return found
