"""Reading and writing the folder of a pair. A pair is read only after everything in it was found sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import PairError
from .record import FILES, HALVES, SCHEMA_VERSION, Half, Record

_TRAIN_ANEW = "Train it again with `acdc-export train`, or restore the folder from where it was written."
_MARKER, _ELSEWHERE = "pair.json", "with --runs"
_PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}


@dataclass(frozen=True)
class Reference:
    """Real inputs and the logits that eager PyTorch gave for them, by name; the batch is the first axis."""

    inputs: dict[str, NDArray[Any]]
    sparse: dict[str, NDArray[Any]]
    dense: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Pair:
    """A verified pair on disk. Get one with `Pair.load`."""

    path: Path
    record: Record

    @classmethod
    def load(cls, path: str | Path) -> Pair:
        """Read and verify the pair in the folder `path`: its files' hashes, and its weights.

        Raises:
            PairError: the folder is missing, half-written or altered, was written by a newer schema, or
                holds weights that no engine should see (NaN, infinity, a layer of zeros only).
        """
        path = Path(path)
        record = _read_record(path)
        damaged = files.damage(path, record.files)
        if damaged:
            raise PairError(f"The pair {path} is damaged: {'; '.join(damaged)}.", _TRAIN_ANEW)
        for half in HALVES:
            _check_weights(path / f"{half}.safetensors", record, half)
        pair = cls(path, record)
        _check_reference(pair)
        return pair

    @property
    def name(self) -> str:
        return self.record.name

    def onnx(self, half: Half) -> Path:
        """The canonical ONNX file of a half, "sparse" or "dense"."""
        return self.path / f"{half}.onnx"

    @cached_property
    def reference(self) -> Reference:
        """The inputs and logits that parity is judged by. Raises `PairError` where they can't be read."""
        path = self.path / "reference.npz"
        groups: dict[str, dict[str, NDArray[Any]]] = {"input": {}, "sparse": {}, "dense": {}}
        try:
            # Opened here, since numpy leaves a file open that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                for key in archive.files:
                    group, _, name = key.partition(".")
                    groups[group][name] = archive[key]
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise PairError(f"{path} can't be read: {error!r}.", _TRAIN_ANEW) from error
        return Reference(groups["input"], groups["sparse"], groups["dense"])


def check_place(path: str | Path) -> None:
    """Whether `write` may write to `path`, before anything is trained for it. Raises `OutputError`."""
    files.check_place(Path(path), _MARKER, _ELSEWHERE)


def write(path: str | Path, record: Record, fill: Callable[[Path], None]) -> Pair:
    """Write a pair: `fill(folder)` puts the five files of `FILES` into a temporary folder, which is hashed,
    verified as a reader would, and only then renamed to `path`.

    `reference.npz` holds `input.NAME`, `sparse.NAME` and `dense.NAME` for the inputs and the outputs.

    Raises:
        OutputError: `path` is foreign or can't be written.
        PairError: what `fill` wrote is not a sound pair.
    """
    path = Path(path)
    with files.new_folder(path, _MARKER, _ELSEWHERE) as folder:
        fill(folder)
        record = replace(record, files=files.fingerprints(folder))
        files.write_json(folder / _MARKER, {"schema_version": SCHEMA_VERSION, **asdict(record)})
        for name in FILES:  # safetensors makes its files readable by their owner only
            (folder / name).chmod((folder / _MARKER).stat().st_mode)
        Pair.load(folder)
    return Pair(path, record)


def _read_record(path: Path) -> Record:
    if path.is_file():
        if path.suffix in _PICKLES:
            raise PairError(
                f"{path} is a checkpoint, not a pair: reading a pickle runs whatever code is in it.",
                "Write a pair from the training script with `ACDC.save_pair(folder, ...)`, and give that folder.",
            )
        raise PairError(f"{path} is a file; a pair is a folder with a pair.json in it.", "Give the folder.")
    if not path.exists():
        raise PairError(
            f"There is no pair at {path}.", "Check the path, or train a pair: `acdc-export train PIPELINE`."
        )
    document = path / _MARKER
    if not document.is_file():
        raise PairError(f"{path} holds no pair.json: it is no pair, or only half of one was written.", _TRAIN_ANEW)
    record = files.read_record(document, Record, SCHEMA_VERSION, PairError, _TRAIN_ANEW)
    if not files.is_name(record.name):  # it becomes a part of the bundle's path
        raise PairError(
            f"{document}: '{record.name}' can't be the name of a folder.", "Use letters, digits, '.', '_' and '-'."
        )
    unlisted = [name for name in FILES if name not in record.files]
    if unlisted:
        raise PairError(f"{document} lists no hash for {', '.join(unlisted)}.", _TRAIN_ANEW)
    return record


def _check_weights(path: Path, record: Record, half: Half) -> None:
    """Refuse weights that no engine should see; count the sparse half's zeros against what the record says."""
    from safetensors import SafetensorError, safe_open

    missing = dict(record.pattern.layers)
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict: it can't be iterated)
                tensor = tensors.get_tensor(name)
                if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
                    bad = int((~np.isfinite(tensor)).sum())
                    raise PairError(
                        f"{path}: {name} holds NaN or infinity, {bad} times.",
                        "The training run diverged; train again with a lower learning rate.",
                    )
                layer = missing.pop(name, None)
                if layer is None:
                    continue
                if not tensor.any():
                    raise PairError(
                        f"{path}: every weight of {name} is zero.",
                        "Train with a lower sparsity, or exclude that layer from the pattern.",
                    )
                zeros = tensor.size - int(np.count_nonzero(tensor))
                if tensor.size != layer.total or (half == "sparse" and zeros < layer.zeros):
                    raise PairError(
                        f"{path}: {name} has {zeros} zeros of {tensor.size}, but pair.json says "
                        f"{layer.zeros} of {layer.total}.",
                        _TRAIN_ANEW,
                    )
    except SafetensorError as error:
        raise PairError(f"{path} can't be read: {error}.", _TRAIN_ANEW) from error
    if missing:
        raise PairError(f"{path} lacks {', '.join(sorted(missing))}, which pair.json lists as pruned.", _TRAIN_ANEW)


def _check_reference(pair: Pair) -> None:
    """Refuse a reference that nothing can be held against: other names or shapes than the record's, or NaN."""
    path, reference = pair.path / "reference.npz", pair.reference
    rows = {len(array) if array.ndim else 0 for array in reference.inputs.values()}
    count = max(rows, default=0)
    for arrays, specs in (
        (reference.inputs, pair.record.inputs),
        (reference.sparse, pair.record.outputs),
        (reference.dense, pair.record.outputs),
    ):
        shapes = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
        if not specs or not count or shapes != {spec.name: (spec.dtype, spec.at(count)) for spec in specs}:
            raise PairError(f"{path} doesn't hold the inputs and outputs that pair.json names.", _TRAIN_ANEW)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise PairError(f"{path}: {name} holds values that are NaN or infinite.", _TRAIN_ANEW)
