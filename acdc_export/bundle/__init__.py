"""The bundle: what one deploys, and the evidence for it. docs/bundle-format.md gives the reasons.

    model/          what one ships, in the runtime's form: ONNX, or what was built of it, perhaps with its sources
    evidence/       the twin, golden inputs and outputs, raw samples, report.json, locked versions
    manifest.json   schema version, what is in model/, and the SHA-256 of all files above
    report.md       for people; derived from evidence/report.json and not hashed, as is run.svg, its picture

A bundle appears whole or not at all, and is never edited: what checks it writes beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import files, present
from ..errors import BundleError
from ..files import Fingerprint
from ..pair.record import TensorSpec
from ..records import to_json
from ..records.report import UPGRADES, Report

__all__ = ["SCHEMA_VERSION", "Bundle", "Manifest", "ModelFile", "check_place", "create", "finish"]

SCHEMA_VERSION = 1
_MARKER = "manifest.json"
_ANEW = "Export the pair again, or restore the bundle from where it was written."


@dataclass(frozen=True)
class ModelFile:
    """A file in `model/`: for one batch size, or for any where `batch_size` is None."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    file: str
    batch_size: int | None


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, but for the schema version."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    target: str
    target_sha256: str  # of the target's folder, when it was exported
    runtime: str
    precision: str
    models: tuple[ModelFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]  # that were measured
    gated_batch_size: int
    tolerance: float  # for the golden outputs, as for parity
    supported_ops: float | None  # what the engine said at the gated batch size
    judged_output: str | None = None  # the output that accuracy is judged by; None in bundles of older releases
    files: dict[str, Fingerprint] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Get one with `Bundle.load`, or from `export`."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle's manifest. Hashes are not checked here but by `damage`: `verify` reports them as a check.

        Raises:
            BundleError: no bundle, half of one, or one of another schema.
        """
        path = Path(path)
        return cls(path, _read_manifest(path))

    def damage(self) -> list[str]:
        """What was changed since the bundle was written, a line each."""
        problems = files.damage(self.path, self.manifest.files)
        for part in ("model", "evidence"):
            names = (path.relative_to(self.path).as_posix() for path in sorted((self.path / part).rglob("*")))
            problems += [f"{name} was added" for name in names if name not in self.manifest.files]
        return problems

    @cached_property
    def report(self) -> Report:
        """The report in `evidence/report.json`. Raises `BundleError` where it can't be read."""
        path = self.path / "evidence" / "report.json"
        return files.read_record(path, Report, Report.SCHEMA_VERSION, BundleError, _ANEW, Report.DERIVED, UPGRADES)

    @property
    def passed(self) -> bool:
        """Whether every gate passed when the bundle was made. Raises `BundleError` where its report can't be read."""
        return self.report.passed

    def __str__(self) -> str:
        return present.text(self.report)

    def model(self, batch_size: int) -> Path:
        """The model file for a batch size."""
        return self.path / "model" / _model_name(self.manifest, batch_size)

    def twin(self, batch_size: int) -> Path:
        """The dense twin's file for a batch size, in the same form."""
        return self.path / "evidence" / _model_name(self.manifest, batch_size).replace("model", "dense", 1)

    @property
    def golden_inputs(self) -> dict[str, NDArray[Any]]:
        return _group(self._golden, "input")

    def golden_outputs(self, batch_size: int) -> dict[str, NDArray[Any]]:
        """What the engine gave for `golden_inputs` when the bundle was made; empty if none are kept."""
        return _group(self._golden, f"b{batch_size}")

    @cached_property
    def _golden(self) -> dict[str, NDArray[Any]]:
        path = self.path / "evidence" / "golden.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} can't be read: {error}.", _ANEW) from error


def check_place(path: Path) -> None:
    """Whether `create` may write to `path`, before anything is trained for it. Raises `OutputError`."""
    files.check_place(path, _MARKER)


@contextmanager
def create(path: Path) -> Iterator[Path]:
    """A folder to build a bundle in, which becomes `path` when the block ends well.

    Raises:
        OutputError: `path` is foreign or can't be written.
    """
    with files.new_folder(path, _MARKER) as folder:
        (folder / "model").mkdir()
        (folder / "evidence").mkdir()
        yield folder


def finish(
    folder: Path,
    manifest: Manifest,
    record: Report,
    golden_inputs: dict[str, NDArray[Any]],
    golden_outputs: dict[int, dict[str, NDArray[Any]]],
    samples: dict[str, NDArray[Any]],
) -> None:
    """Write what goes beside the models into a folder from `create`: golden arrays, raw samples, report, manifest."""
    golden = {f"input.{name}": array for name, array in golden_inputs.items()}
    for batch_size, outputs in golden_outputs.items():
        golden |= {f"b{batch_size}.{name}": array for name, array in outputs.items()}
    np.savez(folder / "evidence" / "golden.npz", **golden)  # type: ignore[arg-type]
    np.savez_compressed(folder / "evidence" / "samples.npz", **samples)  # type: ignore[arg-type]
    files.write_json(folder / "evidence" / "report.json", to_json(record))
    manifest = replace(manifest, files=files.fingerprints(folder))
    files.write_json(folder / _MARKER, {"schema_version": SCHEMA_VERSION, **asdict(manifest)})
    present.write_markdown(folder / "report.md", record)


def _group(arrays: dict[str, NDArray[Any]], group: str) -> dict[str, NDArray[Any]]:
    return {key.partition(".")[2]: array for key, array in arrays.items() if key.partition(".")[0] == group}


def _model_name(manifest: Manifest, batch_size: int) -> str:
    for model in manifest.models:
        if model.batch_size in (None, batch_size):
            return model.file
    raise BundleError(f"The bundle of {manifest.name} has no model for batch size {batch_size}.", _ANEW)


def _read_manifest(path: Path) -> Manifest:
    document = path / _MARKER
    if not path.is_dir():
        raise BundleError(f"There is no bundle at {path}.", "Give the folder that `acdc-export` wrote.")
    if not document.is_file():
        raise BundleError(f"{path} holds no manifest.json: it is no bundle, or only a part of one.", _ANEW)
    manifest = files.read_record(document, Manifest, SCHEMA_VERSION, BundleError, _ANEW)
    names = [model.file for model in manifest.models]
    needed = [*(f"model/{name}" for name in names), "evidence/golden.npz", "evidence/report.json"]
    unlisted = [name for name in needed if name not in manifest.files]
    if not names or unlisted or not all(files.is_name(name) for name in names):
        raise BundleError(f"{document} lists no hash for {', '.join(unlisted) or 'any model'}.", _ANEW)
    return manifest
