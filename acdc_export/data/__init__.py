"""Where samples come from: a name, a file or a factory, read as a stream of numpy batches. This needs no torch.

digits:train                   a part of a built-in data set
imagefolder:PATH               images in a folder for each class; or CIFAR's files, see `images`
validation.npz                 arrays `x` and `y`; or one for each of the network's inputs, and `labels`
package.module:factory         a callable of yours, see `load`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AcdcExportError, UsageError, nearest
from . import digits, glyphs, images
from .importing import import_named, reason

Array = NDArray[Any]
Inputs = Array | dict[str, Array]  # (N, ...); by the names of the network's inputs, where there are several
Batch = tuple[Inputs, Array]  # inputs, and labels (N,)

BUILT_IN: dict[str, Mapping[str, Callable[[], Batch]]] = {"digits": digits.PARTS, "glyphs": glyphs.PARTS}
"""The functions that read the built-in data sets, by data set and part."""

_FORMS = (
    "Give a built-in (digits:train), a file (path.npz), images (imagefolder:PATH), or a factory "
    "(package.module:callable)."
)


@dataclass(frozen=True)
class Data:
    """Samples and their labels. `count` is None where the number is not known without reading all samples.

    Floats are float32 (networks are exported with it), labels are int64.
    """

    spec: str
    count: int | None
    _read: Callable[[], Iterable[Any]] = field(repr=False)  # each call starts anew
    _pick: Callable[[Sequence[int]], Iterable[Any]] | None = field(default=None, repr=False)  # samples by their indices

    @classmethod
    def of(cls, batches: Iterable[Any], spec: str = "the given data") -> Data:
        """Make data from batches `(x, y)` in Python, such as a list or a torch DataLoader.

        An iterator, which can be read only once, is read into memory here.
        """
        repeatable = list(batches) if isinstance(batches, Iterator) else batches
        return cls(spec, None, lambda: repeatable)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield batches of exactly `size` rows; the last one may be smaller.

        Raises:
            UsageError: the data are no pairs of inputs and labels, have unequal lengths, are not finite or are empty.
        """
        if size < 1:
            raise UsageError(f"A batch of {size} rows is not possible.", "Give a batch size of at least 1.")
        buffer: list[Batch] = []
        rows, empty = 0, True
        for raw in self._raw():
            batch = _checked(raw, self.spec)
            if buffer and _signature(batch[0]) != _signature(buffer[0][0]):
                raise UsageError(
                    f"{self.spec}: the shapes or types of the inputs differ between its batches.",
                    "Every sample needs the same inputs, of the same shapes.",
                )
            empty = empty and not len(batch[1])
            buffer.append(batch)
            rows += len(batch[1])
            while rows >= size:
                joined = _join(buffer)
                yield _rows(joined, slice(0, size))
                buffer, rows = [_rows(joined, slice(size, rows))], rows - size
        if empty:
            raise UsageError(f"{self.spec} holds no samples.", "Give data with at least one.")
        if rows:
            yield _join(buffer)

    def sample(self, count: int) -> Data:
        """Take `count` of the samples, or all if there are fewer.

        They are evenly spread, since images in folders come class by class. Where the source can only be read in order,
        they are the first ones.
        """
        if self._pick is None or self.count is None:
            return replace(self, count=None, _read=lambda: islice(self.batches(1), count))
        indices = np.linspace(0, self.count, min(count, self.count), endpoint=False).astype(int).tolist()
        pick = self._pick
        return replace(self, count=len(indices), _read=lambda: pick(indices), _pick=None)

    def _raw(self) -> Iterator[Any]:
        """Yield the source's own batches. Raises `UsageError` with the source's name for whatever goes wrong in it."""
        try:
            yield from self._read()
        except AcdcExportError:
            raise
        except Exception as error:  # a user's factory can fail in any way
            raise UsageError(
                f"{self.spec} can't be read: {reason(error)}.", "Let it return an iterable of batches (x, y)."
            ) from error


def load(spec: str, *, trusted: bool = True) -> Data:
    """Return the data that `spec` names; the module's docstring shows the forms.

    A factory returns an iterable of batches `(x, y)`: `x` is an array or a dict of arrays by input name, `y` are the
    labels. It is called for each reading. Calling it runs code, so a factory is refused unless `trusted`: a spec from
    the user is trusted, a spec from a file that they received is not.

    Raises:
        UsageError: the name is unknown, the file is missing or invalid, or the factory can't be imported.
        RuntimeUnavailable: the package that a built-in data set comes with is missing.
    """
    recognise(spec)
    if spec.endswith(".npz"):
        return _from_arrays(spec, _read_npz(Path(spec), spec))
    name, _, part = spec.partition(":")
    if name in BUILT_IN:
        return _from_arrays(spec, BUILT_IN[name][part]())
    if name in images.KINDS:
        return Data(spec, *images.read(spec))
    if not trusted:
        raise UsageError(
            f"{spec} is a function; to read data from it would run code that you didn't name yourself.",
            f"If you trust it, name it: --data {spec}",
        )
    return Data(spec, None, import_named(spec, "data", [*BUILT_IN, *images.KINDS]))


def recognise(spec: str) -> None:
    """Refuse a `spec` of none of the forms. Raises `UsageError`. It reads nothing, and runs none of the user's code."""
    if spec.endswith(".npz"):
        return
    name, colon, part = spec.partition(":")
    if name in images.KINDS:
        images.parse(spec)
    elif name in BUILT_IN:
        if part not in BUILT_IN[name]:
            raise UsageError(
                f"'{spec}' names no part of {name}{nearest(part, list(BUILT_IN[name]))}.",
                f"Its parts are {', '.join(f'{name}:{known}' for known in BUILT_IN[name])}.",
            )
    elif not colon or "/" in name:
        raise UsageError(f"'{spec}' is no data{nearest(name, [*BUILT_IN, *images.KINDS])}.", _FORMS)


def _from_arrays(spec: str, arrays: Batch) -> Data:
    _checked(arrays, spec)
    count = len(arrays[1])
    if not count:
        raise UsageError(f"{spec} holds no samples.", "Give data with at least one.")
    return Data(spec, count, lambda: [arrays], lambda rows: [_rows(arrays, rows)])


def _read_npz(path: Path, spec: str) -> Batch:
    if not path.is_file():
        raise UsageError(f"There is no file {spec}.", _FORMS)
    try:
        # The file is opened here, since numpy leaves one open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        problem = "it holds Python objects" if "allow_pickle" in str(error) else reason(error)
        raise UsageError(
            f"{spec} can't be read: {problem}.", "Write it with numpy.savez, from arrays of numbers."
        ) from error
    if set(arrays) == {"x", "y"}:
        return arrays["x"], arrays["y"]
    if "labels" in arrays and len(arrays) > 1:
        labels = arrays.pop("labels")
        return arrays, labels
    raise UsageError(
        f"{spec} holds {', '.join(sorted(arrays)) or 'nothing'}; labels are missing.",
        "It needs arrays 'x' and 'y', or one for each of the network's inputs and 'labels'.",
    )


def _checked(raw: Any, spec: str) -> Batch:
    """Convert a batch to arrays that a network can take. Raises `UsageError` that says what is wrong with it."""
    try:
        x, y = raw
    except (TypeError, ValueError):
        raise UsageError(
            f"{spec} gives {type(raw).__name__}, not pairs of inputs and labels.", "Let it yield batches (x, y)."
        ) from None
    labels = _numbers(y, "the labels", spec)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise UsageError(
            f"{spec}: the labels are {labels.dtype} {list(labels.shape)}; one class index a sample is wanted.",
            "Give them as integers from 0, with one axis.",
        )
    named = isinstance(x, Mapping)
    if isinstance(x, tuple):
        raise UsageError(
            f"{spec} gives its inputs as a tuple of {len(x)}.", "Give a dict of arrays, by the names of the inputs."
        )
    inputs = {str(name): _numbers(array, str(name), spec) for name, array in (x.items() if named else [("x", x)])}
    for name, array in inputs.items():
        if array.ndim == 0 or len(array) != len(labels):
            raise UsageError(
                f"{spec}: {name} has {len(array) if array.ndim else 'no'} rows, and there are {len(labels)} labels.",
                "Give as many labels as samples.",
            )
    if not inputs:
        raise UsageError(f"{spec} gives labels without inputs.", "Let it yield batches (x, y).")
    return inputs if named else inputs["x"], labels.astype(np.int64)


def _numbers(value: Any, name: str, spec: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{spec}: {name} are {array.dtype}, not numbers.", "Give arrays of numbers.")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise UsageError(
                f"{spec}: {count} values of {name} are NaN or infinite (as float32).",
                "Remove these samples, or repair what wrote them.",
            )
    return array


def _signature(inputs: Inputs) -> dict[str, tuple[str, tuple[int, ...]]]:
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    return {name: (str(array.dtype), array.shape[1:]) for name, array in named.items()}


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    labels = np.concatenate([y for _, y in batches])
    inputs = [x for x, _ in batches]
    first = inputs[0]
    if isinstance(first, dict):
        return {name: np.concatenate([x[name] for x in inputs]) for name in first}, labels
    return np.concatenate(inputs), labels  # type: ignore[arg-type]


def _rows(batch: Batch, rows: slice | Sequence[int]) -> Batch:
    x, y = batch
    if isinstance(x, dict):
        return {name: array[rows] for name, array in x.items()}, y[rows]
    return x[rows], y[rows]
