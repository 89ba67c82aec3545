"""Compiled models of a bundle are code. A library is loaded if it was built here, or if its bundle is trusted by name.

Any other library is built anew: from the bundle's ONNX, which is data, with the bundle's plan beside it, and never from
the bundle's C. What is run and judged is then the new library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import files
from ..bundle import Bundle
from ..engines import InstalledTarget, built_here
from ..errors import BundleError, EngineError, RuntimeUnavailable
from ..progress import Progress

_ANEW = "Export the pair again, or restore the bundle from where it was written."


@dataclass(frozen=True)
class Admitted:
    """What is loaded for the models of a bundle: themselves, or what was built in their place."""

    replaced: Mapping[Path, Path] = field(default_factory=dict)  # by the model in the bundle
    notes: tuple[str, ...] = ()

    def path(self, model: Path) -> Path:
        """What to load for a model of the bundle."""
        return self.replaced.get(model, model)


def admit(
    bundle: Bundle,
    models: Iterable[Path],
    installed: InstalledTarget,
    *,
    trusted: bool,
    cpus: Sequence[int],
    folder: Path,
    progress: Progress,
) -> Admitted:
    """Decide what is loaded for `models`, files of a bundle. A runtime that compiles nothing loads them as they are.

    Args:
        trusted: whether the user named the bundle as one whose code may run.
        cpus: the cores to build on.
        folder: an empty folder for what is built anew; it has to be there as long as that is loaded.

    Raises:
        BundleError: a model was altered, or what it would have to be built from is missing or altered.
        RuntimeUnavailable: it would have to be built anew, and what that takes is not here.
        EngineError: it could not be built anew.
    """
    if not installed.target.runtime.compiles:
        return Admitted()
    replaced: dict[Path, Path] = {}
    notes = []
    for model in dict.fromkeys(models):
        fingerprint = _checked(bundle, model)
        if built_here.is_known(fingerprint):
            continue
        if trusted:
            notes.append(f"{bundle.path}: {model.name} was not built here. It ran as it is: the bundle is trusted.")
            continue
        progress.say(f"{model.name} of {bundle.path} was not built here: building it anew from the bundle's ONNX.")
        replaced[model] = _build_anew(bundle, model, installed, cpus, folder)
        same = files.sha256(replaced[model]) == fingerprint
        notes.append(
            f"{bundle.path}: {model.name} was not built here. What ran was built anew from the bundle's ONNX; it is "
            + ("the same, byte for byte." if same else "another file than the bundle's.")
        )
    return Admitted(replaced, tuple(notes))


def _checked(bundle: Bundle, file: Path) -> str:
    """The SHA-256 of a file of a bundle. Raises `BundleError` unless it is the recorded one."""
    recorded = bundle.manifest.files.get(file.relative_to(bundle.path).as_posix())
    if recorded is None or not file.is_file():
        raise BundleError(f"{bundle.path} holds no {file.name}, or lists no hash for it.", _ANEW)
    fingerprint = files.sha256(file)
    if fingerprint != recorded.sha256:
        raise BundleError(f"{file} was altered (its SHA-256 differs): it is code, and was not loaded.", _ANEW)
    return fingerprint


def _build_anew(bundle: Bundle, model: Path, installed: InstalledTarget, cpus: Sequence[int], folder: Path) -> Path:
    """Build a model from the ONNX beside it, into `folder`. The plan, which `engine.py` looks for there, is kept to."""
    source = model.with_suffix(".onnx")
    _checked(bundle, source)
    trust = f"If you know where it comes from, let it run as it is, with --trust {bundle.path}."
    try:
        return installed.build(
            source,
            folder / model.stem,
            precision=bundle.manifest.precision,
            batch_sizes=bundle.manifest.batch_sizes,
            cpus=cpus,
            inputs={},
        ).path
    except (RuntimeUnavailable, EngineError) as error:
        raise type(error)(
            f"{model} was not built here, and can't be built anew: {error.message}", f"{error.remedy} {trust}"
        ) from error
