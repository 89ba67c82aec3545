"""Where samples come from: a name, a file or a factory, read as a stream of numpy batches. This needs no torch.

digits:train                   a part of a built-in data set
imagefolder:PATH               images in a folder for each class; or CIFAR's files, see `images`
validation.npz                 arrays `x` and `y`; or one for each of the network's inputs, and `labels`; and perhaps
                               `classes`: the names of the classes as strings, in the order of the labels
package.module:factory         a callable of yours, see `load`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AcdcExportError, UsageError, nearest
from . import digits, glyphs, images
from .batches import Axes, Batch, Inputs, convert
from .importing import import_named, reason

Names = tuple[str, ...] | None

BUILT_IN: dict[str, Mapping[str, Callable[[], Batch]]] = {"digits": digits.PARTS, "glyphs": glyphs.PARTS}
"""The functions that read the built-in data sets, by data set and part."""

_CLASSES = {"digits": digits.CLASSES, "glyphs": tuple(glyphs.CLASSES)}

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
    _names: Callable[[], Names] = field(default=lambda: None, repr=False)
    listed: bool = True  # a label is a place in a listing of classes: one that is missing there moves all after it
    _limit: int | None = field(default=None, repr=False)  # rows to stop after

    @classmethod
    def of(cls, batches: Iterable[Any], spec: str = "the given data", classes: Sequence[str] | None = None) -> Data:
        """Make data from batches `(x, y)` in Python, such as a list or a torch DataLoader.

        The module `batches` says what else is taken.

        An iterator, which can be read only once, is read into memory here.

        Args:
            classes: the names of the classes, in the order of the labels. Those of a DataLoader's data set, such as
                torchvision's, are taken from its attribute `classes`.

        Raises:
            UsageError: names that are empty or not different; batches that can't be iterated over.
        """
        single = isinstance(batches, Mapping) or hasattr(batches, "dtype")
        pair = isinstance(batches, tuple) and len(batches) == 2 and hasattr(batches[0], "dtype")
        if single or pair or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
            raise UsageError(
                f"{spec}: {type(batches).__name__} is no iterable of batches.",
                "Give a list of batches, even of one, [(x, y)]; a DataLoader; or the name of data.",
            )
        names = _class_names(classes, spec) if classes is not None else _names_in(batches)
        repeatable = _kept(batches, spec) if isinstance(batches, Iterator) else batches
        return cls(spec, None, lambda: repeatable, _names=lambda: names)

    @property
    def classes(self) -> Names:
        """The names of the classes, in the order of the labels; None where they are not known.

        Raises `UsageError` where a factory fails, which has to be called for this.
        """
        return self._names()

    @property
    def spread(self) -> bool:
        """Whether `sample` takes samples from all of the data, not only from their beginning."""
        return self._pick is not None and self.count is not None

    def batches(self, size: int, axes: Axes | None = None) -> Iterator[Batch]:
        """Yield batches of exactly `size` rows; the last one may be smaller.

        Args:
            axes: the number of axes of each of the network's inputs, see `batches.convert`.

        Raises:
            UsageError: the data are no pairs of inputs and labels, have unequal lengths, are not finite or are empty.
        """
        if size < 1:
            raise UsageError(f"A batch of {size} rows is not possible.", "Give a batch size of at least 1.")
        buffer: list[Batch] = []
        rows, empty = 0, True
        for batch in self._converted(axes):
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
            return replace(self, count=None, _limit=min(count, self._limit or count))
        indices = np.linspace(0, self.count, min(count, self.count), endpoint=False).astype(int).tolist()
        pick = self._pick
        return replace(self, count=len(indices), _read=lambda: pick(indices), _pick=None)

    def _converted(self, axes: Axes | None) -> Iterator[Batch]:
        """Yield the source's batches as arrays, up to the limit."""
        remaining = self._limit
        for raw in self._raw():
            batch = convert(raw, self.spec, axes)
            if remaining is None:
                yield batch
                continue
            yield _rows(batch, slice(0, remaining))
            remaining -= len(batch[1])
            if remaining <= 0:
                return

    def _raw(self) -> Iterator[Any]:
        """Yield the source's own batches. Raises `UsageError` with the source's name for whatever goes wrong in it."""
        with _failing(self.spec):
            yield from self._read()


class _Factory:
    """Calls a user's factory for each reading. What it returned when its names were asked for is read first."""

    def __init__(self, function: Callable[[], Iterable[Any]], spec: str) -> None:
        self._function, self._spec = function, spec
        self._unread: Iterable[Any] | None = None
        self._names: Names = None
        self._asked = False

    def read(self) -> Iterable[Any]:
        unread, self._unread = self._unread, None
        return self._function() if unread is None else unread

    def names(self) -> Names:
        if not self._asked:
            with _failing(self._spec):
                self._names = _names_in(self._function)
                if self._names is None:
                    self._unread = self._function()
                    self._names = _names_in(self._unread)
            self._asked = True
        return self._names


@contextmanager
def _failing(spec: str) -> Iterator[None]:
    """Turn whatever goes wrong in a source into a `UsageError` with its name."""
    try:
        yield
    except AcdcExportError:
        raise
    except Exception as error:  # a user's factory can fail in any way
        raise UsageError(
            f"{spec} can't be read: {reason(error)}.", "Let it return an iterable of batches (x, y)."
        ) from error


def _kept(batches: Iterator[Any], spec: str) -> list[Any]:
    with _failing(spec):
        return list(batches)


def _names_in(source: Any) -> Names:
    """The names of classes that a DataLoader's data set holds, as torchvision's do; also through subsets of one.

    Labels that are changed on the way are no places in these names, so other wrappers are not looked into.
    """
    layer = getattr(source, "dataset", source)
    for _ in range(5):  # subsets of subsets; a chain that leads back to itself ends, too
        if not hasattr(layer, "indices"):
            break
        layer = getattr(layer, "dataset", None)
    names = getattr(layer, "classes", None)
    if getattr(layer, "target_transform", None) is not None or not isinstance(names, list | tuple):
        return None
    named = all(isinstance(name, str) and name.strip() for name in names) and len({*names}) == len(names) > 0
    return tuple(names) if named else None


def _class_names(names: Any, spec: str) -> tuple[str, ...]:
    """Names that a user gives. Raises `UsageError` unless they are different strings."""
    names = np.asarray(names)
    if names.ndim == 1 and names.dtype.kind == "U" and len(names) and len(set(names)) == len(names) and all(names):
        return tuple(str(name) for name in names)
    raise UsageError(
        f"{spec}: the classes are {names.dtype} {list(names.shape)}; a different name for each is wanted.",
        "Give strings in the order of the labels, or leave the names out.",
    )


def load(spec: str, *, trusted: bool = True) -> Data:
    """Return the data that `spec` names; the module's docstring shows the forms.

    A factory returns an iterable of batches `(x, y)`: `x` is an array or a dict of arrays by input name, `y` are the
    labels (`batches` says what else is taken). It is called for each reading. Calling it runs code, so a factory is
    refused unless `trusted`: a spec from the user is trusted, a spec from a file that they received is not.

    Raises:
        UsageError: the name is unknown, the file is missing or invalid, or the factory can't be imported.
        RuntimeUnavailable: the package that a built-in data set comes with is missing.
    """
    recognise(spec)
    if spec.endswith(".npz"):
        return _from_arrays(spec, *_read_npz(Path(spec), spec))
    name, _, part = spec.partition(":")
    if name in BUILT_IN:
        return _from_arrays(spec, BUILT_IN[name][part](), _CLASSES[name], listed=False)
    if name in images.KINDS:
        source = images.read(spec)
        # CIFAR's labels are in its files; those of a folder follow from the folders that are there.
        return Data(spec, source.count, source.all, source.pick, lambda: source.classes, listed=name == "imagefolder")
    if not trusted:
        raise UsageError(
            f"{spec} is a function; to read data from it would run code that you didn't name yourself.",
            f"If you trust it, name it: --data {spec}",
        )
    factory = _Factory(import_named(spec, "data", [*BUILT_IN, *images.KINDS]), spec)
    return Data(spec, None, factory.read, _names=factory.names)


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


def _from_arrays(spec: str, arrays: Any, names: Names, *, listed: bool = True) -> Data:
    batch = convert(arrays, spec)
    count = len(batch[1])
    if not count:
        raise UsageError(f"{spec} holds no samples.", "Give data with at least one.")
    return Data(spec, count, lambda: [batch], lambda rows: [_rows(batch, rows)], lambda: names, listed)


def _read_npz(path: Path, spec: str) -> tuple[tuple[Any, Any], Names]:
    """Inputs and labels as they are in the file, and the names of the classes where it has them."""
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
    names = None
    if arrays.get("classes", np.zeros(0)).dtype.kind in "US":  # else it is an input of this name
        names = _class_names(arrays.pop("classes").astype(str), spec)
    if set(arrays) == {"x", "y"}:
        return (arrays["x"], arrays["y"]), names
    if "labels" in arrays and len(arrays) > 1:
        labels = arrays.pop("labels")
        return (arrays, labels), names
    raise UsageError(
        f"{spec} holds {', '.join(sorted(arrays)) or 'nothing'}; labels are missing.",
        "It needs arrays 'x' and 'y', or one for each of the network's inputs and 'labels'.",
    )


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
