"""What a user asks of a check, made ready: bundles read, runtimes provided, gates and places known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import RuntimeUnavailable
from ..evidence.latency import Plan, Samples
from ..options import CheckOptions
from ..records.check import Check
from . import baseline
from .baseline import Baseline
from .loaded import LoadedBundle, open_bundle
from .steps import Setup, gates
from .writing import append_history, check_history, check_place, entry, write


@dataclass(frozen=True)
class Request:
    """A check that can begin, and where its results go: they can be written there."""

    setup: Setup
    place: Path
    options: CheckOptions
    stored: Baseline | None  # what the file to store the ratio in holds already

    def keep(self, check: Check, samples: dict[str, Samples]) -> Check:
        """Write what was asked for: the folder, the ratio and a line of history; returns the check with its notes.

        Raises:
            OutputError: it can't be written.
        """
        save = self.options.save
        ratio = entry(check) if save is not None and check.passed else None
        if save is not None:
            check = replace(check, notes=(*check.notes, *baseline.fate(save, self.stored, ratio)))
        write(self.place, check, samples)
        if save is not None and ratio is not None:
            baseline.save(save, self.setup.new.bundle.manifest, ratio)
        if self.options.history is not None:
            append_history(self.options.history, check)
        return check


def resolve(new: Path, options: CheckOptions) -> Request:
    """Read the bundles, provide their runtimes, and see that the results can be written.

    Raises:
        BundleError, BaselineError: what is to be compared can't be read.
        UsageError: a target has to be named, a gate asks for what this kind of check doesn't measure, or a bundle is
            trusted that takes no part.
        RuntimeUnavailable: a runtime can't run here.
        OutputError: the results can't be written.
    """
    options.check_trust(new, *([options.against] if options.against is not None else []))
    loaded = open_bundle(new, options.target, options)
    manifest = loaded.bundle.manifest
    chosen_gates, notes = gates(
        options.kind,
        options.gates,
        data=options.data is not None,
        target=loaded.installed.target.gates,
        tolerance=manifest.tolerance,
    )
    source = options.baseline or options.save
    setup = Setup(
        kind=options.kind,
        new=loaded,
        old=_old(loaded, options),
        stored=baseline.read(options.baseline, manifest) if options.baseline is not None else None,
        source=None if source is None else str(source),
        data=options.data,
        gates=tuple(chosen_gates),
        plan=Plan(budget=options.budget),
        machine=options.machine(),
        progress=options.progress,
        twins=options.twins,
        notes=tuple(notes),
    )
    stored = baseline.existing(options.save, manifest) if options.save is not None else None
    if options.history is not None:
        check_history(options.history)
    place = options.out / loaded.bundle.path.resolve().name
    check_place(place)
    return Request(setup, place, options, stored)


def _old(new: LoadedBundle, options: CheckOptions) -> LoadedBundle | None:
    """What the new bundle is held against: an older one, itself, or no bundle."""
    if options.self_test:
        return new
    if options.against is None:
        return None
    try:
        return open_bundle(options.against, options.against_target or options.target, options)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(
            f"The old bundle can't run here: {error.message}",
            "Check with stored ratios instead: --save FILE where it runs, and --baseline FILE here.",
        ) from error
