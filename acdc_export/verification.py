"""A bundle on this machine: are its files whole, and does its runtime still give its golden outputs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import files
from .bundle import Bundle
from .checking import admit, find_target
from .config import load_target
from .engines import InstalledTarget
from .evidence import batches, parity
from .evidence.gates import Verdict
from .machine import Machine
from .options import BundleOptions


def examine(bundle: Bundle, options: BundleOptions) -> tuple[list[Verdict], list[str]]:
    """A verdict for each thing that is verified, and notes on what differs from when the bundle was made.

    Raises:
        UsageError: its target has to be named, or another bundle than this is trusted.
        RuntimeUnavailable, EngineError: its runtime can't run here.
    """
    options.check_trust(bundle.path)
    damage = bundle.damage()
    whole = Verdict(
        "files", "fail" if damage else "pass", "; ".join(damage) or f"{len(bundle.manifest.files)} unaltered"
    )
    if damage:
        return [whole], ["The models were not run, since the files are not the ones tested."]
    target = load_target(find_target(bundle, options.target))
    report = bundle.report
    gates = Verdict("gates, when it was made", report.verdict, f"on {report.machine.processor}")
    notes = []
    if files.folder_sha256(target.folder) != bundle.manifest.target_sha256:
        notes.append(f"The target {target.name} is defined otherwise than when the bundle was made.")
    machine = options.machine()
    installed = options.install(target)
    verdicts = [whole, gates]
    info: Mapping[str, Any] = {}
    with TemporaryDirectory(prefix="acdc-export-") as folder:
        admitted = admit(
            bundle,
            map(bundle.model, bundle.manifest.batch_sizes),
            installed,
            trusted=options.trusts(bundle.path),
            cpus=machine.cpus,
            folder=Path(folder),
            progress=options.progress,
        )
        for size in bundle.manifest.batch_sizes:
            info, golden = _run(bundle, admitted.path(bundle.model(size)), installed, machine, size)
            verdicts += [golden, *_fast_path(bundle, size, info)]
    return verdicts, [*notes, *admitted.notes, *_changes(bundle, info)]


def _run(
    bundle: Bundle, model: Path, installed: InstalledTarget, machine: Machine, size: int
) -> tuple[Mapping[str, Any], Verdict]:
    """What the engine of `model` says of itself at a batch size, and whether it gives the golden outputs."""
    precision = bundle.manifest.precision
    with closing(installed.open(model, batch_size=size, cpus=machine.cpus, precision=precision)) as engine:
        outputs = batches.run(engine, bundle.golden_inputs, size)
        info = engine.info()
    same = parity.compare(outputs, bundle.golden_outputs(size), bundle.manifest.tolerance)
    detail = f"{model.name}: tolerance needed {same.required:.1e} of {same.tolerance:.0e}"
    return info, Verdict(f"golden outputs, batch {size}", "pass" if same.ok else "fail", detail)


def _fast_path(bundle: Bundle, size: int, info: Mapping[str, Any]) -> Iterator[Verdict]:
    """Whether as many operators are on the fast path as were; only where that was counted."""
    before = bundle.manifest.supported_ops
    if size == bundle.manifest.gated_batch_size and before is not None:
        supported = info.get("supported_ops")
        same = supported is not None and supported >= before
        detail = f"{supported} of the operators on the fast path, {before} when it was made"
        yield Verdict("supported_ops", "pass" if same else "fail", detail)


def _changes(bundle: Bundle, info: Mapping[str, Any]) -> list[str]:
    """What of the runtime is not as it was."""
    target = bundle.report.target
    return [
        f"The {what} is {info.get(key)} here, and was {before} when the bundle was made."
        for what, key, before in (
            ("runtime's version", "version", target.version),
            ("instruction set", "instruction_set", target.instruction_set),
        )
        if info.get(key) != before
    ]
