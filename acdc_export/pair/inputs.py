"""Data in the form that a network takes them. Every way on which samples reach a network leads through `named`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Data
from ..errors import AcdcExportError, UsageError
from .likeness import Likeness
from .record import TensorSpec

_LISTED = 5  # names in an error


@dataclass(frozen=True)
class Expected:
    """What samples have to be like for a network."""

    whose: str  # "the pair", or the path of a bundle
    inputs: tuple[TensorSpec, ...]
    judged: TensorSpec  # the output that is judged
    known: Mapping[str, NDArray[Any]]  # real inputs by name, which samples have to be like
    classes: tuple[str, ...] = ()  # the names of the classes, in the order of the outputs; empty where not known
    labelled: bool = True  # labels are used, so that their classes matter
    unlike: type[AcdcExportError] = UsageError  # what is raised for samples that are unlike the known inputs

    @property
    def width(self) -> int | None:
        """The number of classes that the judged output tells apart; None where its shape doesn't say."""
        shape = self.judged.shape
        return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def named(data: Data, expected: Expected, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """The data as inputs by name and labels, in the expected shapes and dtypes, up to `size` rows at a time.

    For a network that runs on one batch size only, a rest of the data that fills no batch is left out: its rows depend
    on each other, so it can't be filled up.

    Raises:
        UsageError: they have others, or other classes than the network. At the end (or after a few samples, where it
            is certain by then): they are prepared otherwise than the known inputs, see `likeness`.
    """
    specs = expected.inputs
    first = specs[0].shape[0]
    batch_size = first if isinstance(first, int) else 1
    _check_classes(data, expected)
    likeness = {spec.name: Likeness(expected.known[spec.name]) for spec in specs if spec.name in expected.known}
    for given, labels in data.batches(size, {spec.name: len(spec.shape) for spec in specs}):
        inputs = {
            spec.name: _fitting(array, spec, len(labels), data.spec)
            for spec, array in zip(specs, _by_spec(given, specs, data.spec), strict=True)
        }
        for name, seen in likeness.items():
            seen.add(inputs[name])
        _check_likeness(likeness, data, expected, finished=False)
        rows = len(labels) - len(labels) % batch_size
        if rows:
            yield {name: array[:rows] for name, array in inputs.items()}, labels[:rows]
    _check_likeness(likeness, data, expected, finished=True)


def _by_spec(given: Any, specs: Sequence[TensorSpec], source: str) -> list[NDArray[Any]]:
    """The arrays in the order of the network's inputs. A single array is that of a single input, whatever its name."""
    names = ", ".join(spec.name for spec in specs)
    if not isinstance(given, dict):
        if len(specs) != 1:
            raise UsageError(f"{source} gives one array; the network takes {names}.", "Give an array for each by name.")
        return [given]
    if len(specs) == 1 and len(given) == 1:
        return list(given.values())
    if any(spec.name not in given for spec in specs):
        raise UsageError(
            f"{source} gives {', '.join(given)}; the network takes {names}.",
            "Name the arrays as the network's inputs are named.",
        )
    return [given[spec.name] for spec in specs]


def _fitting(array: NDArray[Any], spec: TensorSpec, rows: int, source: str) -> NDArray[Any]:
    """An array in the shape and dtype that the network takes. Raises `UsageError` for others."""
    shape = (rows, *spec.at(rows)[1:])
    if array.shape == shape and np.can_cast(array.dtype, spec.dtype, "same_kind"):
        return np.ascontiguousarray(array, dtype=spec.dtype)
    remedy = "Prepare the data as for training: same layout, size and type."
    if array.ndim == 4 and array.shape != shape:
        for layout, order in (("last", (0, 3, 1, 2)), ("first", (0, 2, 3, 1))):
            if tuple(array.shape[axis] for axis in order) == shape:
                remedy = f"The channels come {layout}: give {spec.name}.transpose{order}, prepared as for training."
    wanted = ", ".join(str(dim) for dim in spec.shape)
    raise UsageError(
        f"{source} gives {spec.name} as {array.dtype} {array.shape}; the network takes {spec.dtype} ({wanted}).", remedy
    )


def _check_likeness(likeness: Mapping[str, Likeness], data: Data, expected: Expected, *, finished: bool) -> None:
    for name, seen in likeness.items():
        if problem := seen.problem(finished=finished):
            part, given, known = problem
            raise expected.unlike(
                f"{data.spec} has {part}{name} {given}; the inputs that {expected.whose} knows run {known}.",
                "Prepare the samples as for training (scale, normalisation). If they are, save the pair again with "
                "real samples as its example inputs.",
            )


def _check_classes(data: Data, expected: Expected) -> None:
    """Refuse labels that mean other classes than the network's outputs, as far as names or their number tell."""
    if not expected.labelled:
        return
    given, known = data.classes, expected.classes
    if given is None or given == known:
        return
    if not known:
        if data.listed and expected.width not in (None, len(given)):
            raise UsageError(
                f"{data.spec} has {len(given)} classes ({_listing(given)}), and the network of {expected.whose} tells "
                f"{expected.width} apart: labels may stand for other classes.",
                "Give a folder for each class that it was trained on; a class that is missing moves all labels after "
                "it. Or give samples and labels without names of classes.",
            )
        return
    missing, extra = [name for name in known if name not in given], [name for name in given if name not in known]
    if missing or extra:
        parts = [f"lacks {_listing(missing)}"] if missing else []
        parts += [f"has {_listing(extra)}, which the network doesn't know"] if extra else []
        raise UsageError(
            f"{data.spec} has other classes than {expected.whose}: it {' and '.join(parts)}.",
            f"Judge by all of its {len(known)} classes, named as in training: {_listing(known)}.",
        )
    at = next(index for index, pair in enumerate(zip(given, known, strict=True)) if pair[0] != pair[1])
    raise UsageError(
        f"{data.spec} has the classes in another order than {expected.whose}: {at} is {given[at]}, not {known[at]}.",
        f"Number the labels as in training: {_listing(known)}.",
    )


def _listing(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
