"""Reading and writing the folder of a pair. A pair is read only after everything in it was found sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import PairError
from ..version import __version__
from .inputs import Expected
from .record import (
    HALVES,
    SCHEMA_VERSION,
    UPGRADES,
    Half,
    PatternRecord,
    Record,
    ReferenceRecord,
    TensorSpec,
    contradiction,
)

_TRAIN_ANEW = "Train it again with `acdc-export train`, or restore the folder from where it was written."
_MARKER, _ELSEWHERE = "pair.json", "with --runs"
_NAMES: dict[Half, str] = {"sparse": "sparse half", "dense": "dense twin"}
_PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}


@dataclass(frozen=True)
class Reference:
    """Real inputs and the reference outputs for them, by name; the batch is the first axis.

    `pair.json` says what computed the outputs. Those of a half that isn't there are empty.
    """

    inputs: dict[str, NDArray[Any]]
    sparse: dict[str, NDArray[Any]]
    dense: dict[str, NDArray[Any]]

    def outputs(self, half: Half) -> dict[str, NDArray[Any]]:
        """The reference outputs of a half."""
        return self.sparse if half == "sparse" else self.dense


class CountedWeight(Protocol):
    """What is known of a weight that was read from ONNX."""

    @property
    def name(self) -> str: ...

    @property
    def zeros(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def finite(self) -> bool: ...


@dataclass(frozen=True)
class Pair:
    """A verified pair on disk. Get one with `Pair.load`."""

    path: Path
    record: Record

    @classmethod
    def load(cls, path: str | Path) -> Pair:
        """Read and verify the pair in the folder `path`: its files' hashes, and its weights.

        A half without a state dict has its weights in the ONNX alone, which only `check_weights` looks at.

        Raises:
            PairError: the folder is missing, half-written or altered, was written by a newer schema, or
                holds weights that no engine should see (NaN, infinity, a layer of zeros only that pair.json doesn't
                name as such).
        """
        path = Path(path)
        record = _read_record(path)
        damaged = files.damage(path, record.files)
        if damaged:
            raise PairError(f"The pair {path} is damaged: {'; '.join(damaged)}.", _TRAIN_ANEW)
        for half in record.state_dicts:
            _check_state_dict(path / f"{half}.safetensors", record, half)
        pair = cls(path, record)
        _check_reference(pair)
        return pair

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def expected(self) -> Expected:
        """What samples have to be like to judge or calibrate this pair by them."""
        record = self.record
        judged = next(spec for spec in record.outputs if spec.name == record.judged)
        return Expected(f"the pair {self.path}", record.inputs, judged, self.reference.inputs, record.classes)

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that are there, the sparse one first."""
        return tuple(half for half in HALVES if half in self.record.halves)

    def require(self, *halves: Half) -> None:
        """Refuse to go on without these halves. Raises `PairError`."""
        missing = [_NAMES[half] for half in halves if half not in self.halves]
        if missing:
            there = " and ".join(f"a {_NAMES[half]}" for half in self.halves)
            raise PairError(
                f"The pair {self.path} has no {' and no '.join(missing)}, only {there}.",
                "Give a pair with both halves: train one, or import both.",
            )

    def onnx(self, half: Half) -> Path:
        """The canonical ONNX file of a half, "sparse" or "dense". Raises `PairError` where that half is missing."""
        self.require(half)
        return self.path / f"{half}.onnx"

    def check_weights(self, half: Half, weights: Iterable[CountedWeight]) -> None:
        """Refuse what no engine should see among the weights of a half's ONNX, and fewer zeros than `pair.json` says.

        Whoever reads the ONNX has to ask for this: a pair is read without the tools to do so. Raises `PairError`.
        """
        path, layers, told = self.onnx(half), self.record.pattern.layers, self.record.is_zero_throughout
        for weight in weights:
            problem = None
            if not weight.finite:
                problem = "holds NaN or infinity"
            elif weight.name in layers and weight.zeros == weight.total and not told(half, weight.name):
                problem = "is zero throughout"
            elif half == "sparse" and weight.name in layers and weight.zeros < layers[weight.name].zeros:
                problem = f"has {weight.zeros} zeros, but pair.json says {layers[weight.name].zeros}"
            if problem:
                raise PairError(f"{path}: {weight.name} {problem}.", "Write the pair again from its training.")

    @cached_property
    def reference(self) -> Reference:
        """The inputs and outputs that parity is judged by. Raises `PairError` where they can't be read."""
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
    """Write a pair: `fill(folder)` puts the files of `record.required_files` into a temporary folder, which is hashed,
    verified as a reader would, and only then renamed to `path`.

    `reference.npz` holds `input.NAME`, `sparse.NAME` and `dense.NAME` for the inputs and the outputs.

    Raises:
        OutputError: `path` is foreign or can't be written.
        PairError: the record contradicts itself, or what `fill` wrote is not a sound pair.
    """
    path = Path(path)
    _refuse_contradiction(path, record)
    with files.new_folder(path, _MARKER, _ELSEWHERE) as folder:
        fill(folder)
        record = replace(record, files=files.fingerprints(folder))
        files.write_json(folder / _MARKER, {"schema_version": SCHEMA_VERSION, **asdict(record)})
        for name in record.files:  # safetensors makes its files readable by their owner only
            (folder / name).chmod((folder / _MARKER).stat().st_mode)
        Pair.load(folder)
    return Pair(path, record)


def build(
    path: str | Path,
    onnx: Mapping[Half, Path | bytes],
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[Half, Mapping[str, NDArray[Any]]],
    *,
    computed_by: str,
    pattern: PatternRecord,
    name: str | None = None,
    batch: str = "batch",
    **facts: Any,
) -> Pair:
    """Write a pair of networks that come from elsewhere, as ONNX: all that an importer needs.

    Args:
        path: the pair's folder.
        onnx: the ONNX of each half that there is, as a file or as its content.
        inputs: real inputs by name, the batch being the first axis; a few dozen rows are enough.
        outputs: what each half gives for them, by name.
        computed_by: what computed these outputs: "ONNX Runtime 1.31".
        pattern: which weights are kept. Its layers are named as the initializers of the ONNX.
        name: the pair's; the folder's by default.
        batch: what the graphs call their symbolic batch size.
        facts: other fields of `Record`, such as `history`, `metrics` or `tools`.

    Raises:
        OutputError: `path` is foreign or can't be written.
        PairError: arrays that don't belong together, are not finite, or are of other halves than the ONNX.
    """
    path = Path(path)
    first = next(iter(outputs.values()), {})
    record = Record(
        name=name or path.name,
        inputs=_specs(inputs, batch),
        outputs=_specs(first, batch),
        pattern=pattern,
        reference=ReferenceRecord(computed_by),
        **{
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "halves": tuple(onnx),
            "state_dicts": (),
            **facts,
            "tools": {"acdc-export": __version__, **facts.get("tools", {})},
        },
    )

    def fill(folder: Path) -> None:
        for half, graph in onnx.items():
            (folder / f"{half}.onnx").write_bytes(graph if isinstance(graph, bytes) else graph.read_bytes())
        arrays = {f"input.{key}": array for key, array in inputs.items()}
        for half, logits in outputs.items():
            arrays |= {f"{half}.{key}": array for key, array in logits.items()}
        np.savez(folder / "reference.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **arrays

    return write(path, record, fill)


def _specs(arrays: Mapping[str, NDArray[Any]], batch: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(array.dtype), (batch, *array.shape[1:])) for name, array in arrays.items())


def _refuse_contradiction(where: Path, record: Record) -> None:
    if problem := contradiction(record):
        raise PairError(f"{where}: {problem}.", "Write the pair with facts that go together.")


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
    record = files.read_record(document, Record, SCHEMA_VERSION, PairError, _TRAIN_ANEW, upgrades=UPGRADES)
    _refuse_contradiction(document, record)
    if not files.is_name(record.name):  # it becomes a part of the bundle's path
        raise PairError(
            f"{document}: '{record.name}' can't be the name of a folder.", "Use letters, digits, '.', '_' and '-'."
        )
    unlisted = [name for name in record.required_files if name not in record.files]
    if unlisted:
        raise PairError(f"{document} lists no hash for {', '.join(unlisted)}.", _TRAIN_ANEW)
    return record


def _check_state_dict(path: Path, record: Record, half: Half) -> None:
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
                if not tensor.any() and not record.is_zero_throughout(half, name):
                    raise PairError(
                        f"{path}: every weight of {name} is zero, and pair.json doesn't say so.", _TRAIN_ANEW
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
    outputs = {half: pair.record.outputs if half in pair.halves else () for half in HALVES}
    for arrays, specs, needed in (
        (reference.inputs, pair.record.inputs, True),
        *((reference.outputs(half), specs, half in pair.halves) for half, specs in outputs.items()),
    ):
        shapes = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
        incomplete = needed and not (specs and count)
        if incomplete or shapes != {spec.name: (spec.dtype, spec.at(count)) for spec in specs}:
            raise PairError(f"{path} doesn't hold the inputs and outputs that pair.json names.", _TRAIN_ANEW)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise PairError(f"{path}: {name} holds values that are NaN or infinite.", _TRAIN_ANEW)
