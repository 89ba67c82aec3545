"""A bundle that takes part in a check, with the runtime that it was made with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import files, resources
from ..bundle import Bundle
from ..config import load_target
from ..engines import InstalledTarget
from ..errors import BundleError, UsageError
from ..evidence import batches, parity
from ..evidence.engine import Engine
from ..evidence.parity import Parity
from ..options import BundleOptions
from ..pair import Expected, Half
from ..progress import Progress
from ..records.check import BundleFacts
from .compiled import Admitted, admit


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle, and the installed target that its engines run in."""

    bundle: Bundle
    installed: InstalledTarget
    cpus: tuple[int, ...]
    trusted: bool = False  # the user named it as one whose code may run
    admitted: Admitted = field(default_factory=Admitted)  # what is loaded in place of its own models

    def admit(self, halves: Iterable[Half], folder: Path, progress: Progress) -> LoadedBundle:
        """Decide what is loaded for these halves; `compiled.admit` tells of `folder`, and what is raised."""
        admitted = admit(
            self.bundle,
            map(self.model, halves),
            self.installed,
            trusted=self.trusted,
            cpus=self.cpus,
            folder=folder,
            progress=progress,
        )
        return replace(self, admitted=admitted)

    def model(self, half: Half) -> Path:
        """The file of a half in the bundle, at the gated batch size."""
        return self.bundle.model(self.batch_size) if half == "sparse" else self.bundle.twin(self.batch_size)

    @property
    def batch_size(self) -> int:
        """The batch size that gates judge."""
        return self.bundle.manifest.gated_batch_size

    def open(self, half: Half = "sparse") -> Engine:
        """Start loading one half, at the gated batch size."""
        return self.installed.open(
            self.admitted.path(self.model(half)),
            batch_size=self.batch_size,
            cpus=self.cpus,
            precision=self.bundle.manifest.precision,
            wait=False,
        )

    @property
    def expected(self) -> Expected:
        """What samples have to be like to judge this bundle by them."""
        manifest, classes = self.bundle.manifest, self.bundle.report.pair.classes
        judged = next((spec for spec in manifest.outputs if spec.name == manifest.judged_output), manifest.outputs[0])
        return Expected(str(self.bundle.path), manifest.inputs, judged, self.bundle.golden_inputs, classes)

    def inputs(self) -> dict[str, NDArray[Any]]:
        """One batch of the golden inputs by name, filled up where there are fewer."""
        size = self.batch_size
        return {name: batches.pad(array[:size], size) for name, array in self.bundle.golden_inputs.items()}

    def golden_parity(self, engine: Engine) -> Parity:
        """Compare what the engine of the sparse half gives here with the bundle's golden outputs."""
        outputs = batches.run(engine, self.bundle.golden_inputs, self.batch_size)
        return parity.compare(outputs, self.bundle.golden_outputs(self.batch_size), self.bundle.manifest.tolerance)

    def facts(self, engine: Engine, golden: Parity) -> BundleFacts:
        """What the bundle says of itself, and what the engine of its sparse half says here."""
        manifest, report = self.bundle.manifest, self.bundle.report
        model = self.model("sparse")
        info = engine.info()
        return BundleFacts(
            path=str(self.bundle.path),
            name=manifest.name,
            created=report.created,
            target=manifest.target,
            target_sha256=files.folder_sha256(self.installed.target.folder),
            runtime=info["runtime"],
            version=info["version"],
            instruction_set=info.get("instruction_set"),
            locked=self.installed.environment.locked,
            precision=manifest.precision,
            size=model.stat().st_size,
            model_sha256=manifest.files[model.relative_to(self.bundle.path).as_posix()].sha256,
            zeros=report.structure.zeros,
            total=report.structure.total,
            operators=report.structure.operators,
            supported_ops=info.get("supported_ops"),
            parity=golden.required,
            max_abs=golden.max_abs,
        )

    def environment_notes(self) -> list[str]:
        """What the bundle was made with and is not here: only the host's own interpreter is taken as it is."""
        before, here = self.bundle.report.target.locked, self.installed.environment.locked
        changed = [name for name in sorted({*before, *here}) if before.get(name) != here.get(name)]
        if not changed:
            return []
        listing = ", ".join(f"{name} {before.get(name, '-')} → {here.get(name, '-')}" for name in changed)
        return [f"{self.bundle.path} was made with other versions in the interpreter at hand: {listing}."]


def open_bundle(path: Path, target: str | None, options: BundleOptions) -> LoadedBundle:
    """Read a bundle and install its runtime, in the versions that the bundle was made with.

    Args:
        target: the folder of the bundle's target, where that is not a built-in one.
        options: the cores to use, and what the runtime may need to be installed.

    Raises:
        BundleError: the bundle can't be read, or was altered.
        UsageError: the target has to be named, or the named target is another.
        RuntimeUnavailable: the runtime can't run here.
    """
    bundle = Bundle.load(path)
    if damaged := bundle.damage():
        raise BundleError(
            f"{path} is not as it was written: {'; '.join(damaged)}.", "Export the pair again, or restore the bundle."
        )
    manifest = bundle.manifest
    definition = load_target(find_target(bundle, target))
    if definition.name != manifest.target:
        raise UsageError(
            f"{path} was made for the target '{manifest.target}', and {target} is '{definition.name}'.",
            "Name the folder of that target.",
        )
    environment = options.ensure(definition, locked=bundle.report.target.locked)
    installed = InstalledTarget(definition, environment)
    return LoadedBundle(bundle, installed, options.machine().cpus, options.trusts(path))


def find_target(bundle: Bundle, named: str | None) -> str:
    """The target of a bundle: the one that the user named, or else a built-in one.

    A path in the bundle is not followed: it would lead to code that came with it. Raises `UsageError`.
    """
    if named is None and bundle.manifest.target not in resources.names("targets"):
        raise UsageError(
            f"{bundle.path} was made for the target '{bundle.manifest.target}', which is not a built-in one.",
            "Name its folder yourself, with --target.",
        )
    return named or bundle.manifest.target
