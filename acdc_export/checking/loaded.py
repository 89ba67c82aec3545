"""A bundle that takes part in a check: whole, and with the runtime that it was made with."""

from __future__ import annotations

from dataclasses import dataclass
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
from ..options import BundleOptions
from ..pair import Half
from ..records.check import BundleFacts


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle and the installed that its engines run in."""

    bundle: Bundle
    installed: InstalledTarget
    cpus: tuple[int, ...]

    @property
    def batch_size(self) -> int:
        return self.bundle.manifest.gated_batch_size

    def open(self, half: Half = "sparse") -> Engine:
        """Start loading one half, at the gated batch size."""
        find = self.bundle.model if half == "sparse" else self.bundle.twin
        precision = self.bundle.manifest.precision
        return self.installed.open(
            find(self.batch_size), batch_size=self.batch_size, cpus=self.cpus, precision=precision, wait=False
        )

    def inputs(self) -> dict[str, NDArray[Any]]:
        """One batch of the golden inputs, repeated where there are fewer."""
        size = self.batch_size
        return {name: batches.pad(array[:size], size) for name, array in self.bundle.golden_inputs.items()}

    def examine(self, engine: Engine) -> BundleFacts:
        """What is to be said of this bundle, with its golden outputs held against what the engine gives here."""
        manifest, made = self.bundle.manifest, self.bundle.report
        model = self.bundle.model(self.batch_size)
        outputs = batches.run(engine, self.bundle.golden_inputs, self.batch_size)
        found = parity.compare(outputs, self.bundle.golden_outputs(self.batch_size), manifest.tolerance)
        info = engine.info()
        return BundleFacts(
            path=str(self.bundle.path),
            name=manifest.name,
            created=made.created,
            target=manifest.target,
            target_sha256=files.folder_sha256(self.installed.target.folder),
            runtime=info["runtime"],
            version=info["version"],
            instruction_set=info.get("instruction_set"),
            locked=self.installed.environment.locked,
            precision=manifest.precision,
            size=model.stat().st_size,
            model_sha256=manifest.files[model.relative_to(self.bundle.path).as_posix()].sha256,
            zeros=made.structure.zeros,
            total=made.structure.total,
            operators=made.structure.operators,
            supported_ops=info.get("supported_ops"),
            parity=found.required,
            max_abs=found.max_abs,
        )


def prepare(path: Path, target: str | None, options: BundleOptions) -> LoadedBundle:
    """Read a bundle and provide its runtime, in the versions that it was made with.

    Args:
        target: the folder of its target, where that is not a built-in one.
        options: the cores to use, and what the runtime may need to be installed.

    Raises:
        BundleError: it can't be read, or was altered.
        UsageError: its target has to be named, or another one was.
        RuntimeUnavailable: its runtime can't run here.
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
    return LoadedBundle(bundle, InstalledTarget(definition, environment), options.machine().cpus)


def find_target(bundle: Bundle, named: str | None) -> str:
    """The target of a bundle: the one that was named, or a built-in one.

    A path in a bundle that somebody sent would be code that came with it. Raises `UsageError`.
    """
    if named is None and bundle.manifest.target not in resources.names("targets"):
        raise UsageError(
            f"{bundle.path} was made for the target '{bundle.manifest.target}', which is not a built-in one.",
            "Name its folder yourself, with --target.",
        )
    return named or bundle.manifest.target
