"""A batch as somebody's loader gives it, converted to numpy arrays: the inputs of a network and its labels.

Nothing is guessed: a form that could mean two things is refused, and the error names what to give. Tensors of torch are
recognised by what they can do, so that torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .importing import reason

Array = NDArray[Any]
Inputs = Array | dict[str, Array]  # (N, ...); by the names of the network's inputs, where there are several
Batch = tuple[Inputs, Array]  # inputs, and labels (N,)
Axes = Mapping[str, int]  # the number of axes of each of a network's inputs, the batch's included, in their order

LABELS = ("labels", "label", "label_ids", "y", "target", "targets")
"""What labels are called in batches that are dicts, named tuples or dataclasses."""

_FORMS = "Let it yield batches (x, y): arrays or tensors, or x as a dict of them by the names of the inputs."
_CLASSES = "Give one class index a sample: integers from 0, in the order of the network's outputs."


def convert(raw: Any, spec: str, axes: Axes | None = None) -> Batch:
    """Convert a batch: float32 or integer inputs, and int64 labels (N,).

    A batch is `(x, y)`, or a dict, named tuple or dataclass in which one field is called as in `LABELS`. `x` is an
    array or tensor, a list of samples, a dict by name, or a list or tuple of several inputs. `y` are class indices,
    (N,) or (N, 1), of any type of integers. A single label without axes makes a batch of one sample.

    Args:
        spec: names the data in errors.
        axes: of the network's inputs, where they are known. They tell samples from inputs and one sample from a batch
            of one; fields that are no inputs are left out.

    Raises:
        UsageError: it is no such batch, holds values that are not finite, or other than one label a sample.
    """
    x, y = _split(raw, spec, axes)
    labels = _numbers(y, "the labels", spec)
    named, arrays = _inputs(x, None if labels.ndim == 0 else len(labels), spec, axes)
    if not arrays:
        raise UsageError(f"{spec} gives labels without inputs.", _FORMS)
    if labels.ndim == 0:
        arrays = {name: _one_sample(array, _axes_of(name, named, axes)) for name, array in arrays.items()}
        labels = labels.reshape(1)
    labels = _class_indices(labels, spec)
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(labels):
            raise UsageError(
                f"{spec}: {name} has {len(array) if array.ndim else 'no'} rows, and there are {len(labels)} labels.",
                "Give as many labels as samples.",
            )
    return (arrays if named else arrays["x"]), labels


# ---------------------------------------------------------------------------------------------- inputs and labels


def _split(raw: Any, spec: str, axes: Axes | None) -> tuple[Any, Any]:
    """Tell the inputs from the labels."""
    entries = _fields(raw)
    if entries is not None:
        keys = [key for key in entries if key.lower() in LABELS and key not in (axes or ())]
        if len(keys) == 1:
            return {key: value for key, value in entries.items() if key != keys[0]}, entries[keys[0]]
        if not isinstance(raw, tuple) or len(entries) != 2 or keys:
            given = ", ".join(entries) or "nothing"
            problem = f"{' and '.join(keys)} could be the labels" if keys else "none of it is called labels"
            raise UsageError(
                f"{spec} gives {type(raw).__name__} with {given}; {problem}.",
                "Call one entry 'labels', or yield (x, y).",
            )
    if isinstance(raw, tuple | list):
        if len(raw) == 2:
            return raw[0], raw[1]
        if axes is not None and len(axes) > 1 and len(raw) == len(axes) + 1:  # as a TensorDataset of them gives
            return tuple(raw[:-1]), raw[-1]
        problem = f"{type(raw).__name__}s of {len(raw)}"
        raise UsageError(
            f"{spec} gives {problem}, not pairs of inputs and labels.",
            "Let it yield (x, y); several inputs go together: ((x1, x2), y), or a dict of them by name for x.",
        )
    raise UsageError(f"{spec} gives {type(raw).__name__}, not pairs of inputs and labels.", _FORMS)


def _fields(value: Any) -> dict[str, Any] | None:
    """The entries of a dict, a named tuple or a dataclass; None for anything else."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items() if entry is not None}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _inputs(x: Any, rows: int | None, spec: str, axes: Axes | None) -> tuple[bool, dict[str, Array]]:
    """Whether the inputs go by name, and their arrays; a single one without a name is "x"."""
    entries = _fields(x)
    if isinstance(x, tuple) and entries is not None and not set(axes or ()) <= set(entries):
        entries = None  # a named tuple whose names are not the network's: its order counts
    if entries is None and isinstance(x, tuple | list) and _are_inputs(x, rows, axes):
        names = list(axes) if axes else ["input"] if len(x) == 1 else [f"input_{at}" for at in range(len(x))]
        if len(names) != len(x):
            raise UsageError(
                f"{spec} gives {len(x)} inputs; the network takes {', '.join(names)}.",
                "Give a dict of arrays, by the names of the inputs.",
            )
        entries = dict(zip(names, x, strict=True))
    if entries is None:
        return False, {"x": _numbers(x, "x", spec)}
    if axes and set(axes) <= set(entries):
        entries = {name: entries[name] for name in axes}
    return True, {name: _numbers(value, name, spec) for name, value in entries.items()}


def _are_inputs(x: Sequence[Any], rows: int | None, axes: Axes | None) -> bool:
    """Whether a list holds a network's inputs; otherwise it holds the samples of a single one."""
    if axes is None:
        arrays = bool(x) and len(x) != rows and all(hasattr(value, "shape") and _ndim(value) for value in x)
        return arrays and all(len(value) == rows for value in x)
    if len(x) == len(axes):  # samples have an axis less than the inputs, but for a single sample without a batch
        less = 1 if rows is None else 0
        return all(_ndim(value) in (count, count - less) for value, count in zip(x, axes.values(), strict=True))
    (count, *others) = axes.values()
    return bool(others) or (len(x) != rows and all(_ndim(value) == count for value in x))


def _ndim(value: Any) -> int | None:
    """The number of axes; None for what has none, such as a ragged list."""
    try:
        return int(value.ndim) if hasattr(value, "ndim") else int(np.ndim(value))
    except Exception:  # whatever a user's objects raise
        return None


def _axes_of(name: str, named: bool, axes: Axes | None) -> int | None:
    """How many axes the network's input has that this array is for; None where that is not known."""
    if axes is None:
        return None
    return axes.get(name) if named and name in axes else next(iter(axes.values())) if len(axes) == 1 else None


def _one_sample(array: Array, axes: int | None) -> Array:
    """A batch of one sample; it has an axis for the batch already where it has as many axes as the input."""
    return array if axes is not None and array.ndim == axes else array[None]


def _class_indices(labels: Array, spec: str) -> Array:
    """Labels as class indices, int64 (N,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole, rows = labels.dtype.kind != "f" or bool((labels == np.rint(labels)).all()), len(labels)
    remedy = _CLASSES
    if labels.ndim == 2 and whole and ((labels == 1).sum(axis=1) == 1).all() and labels.sum() == rows:
        remedy = "These rows look one-hot: give y.argmax(axis=1)."
    elif labels.ndim == 1 and labels.dtype.kind == "f" and whole:
        remedy = "If they are class indices, give them as integers: y.astype(int)."
    elif labels.ndim == 1 and labels.dtype.kind != "f":
        if not rows or (labels.min() >= 0 and labels.max() <= np.iinfo(np.int64).max):
            return labels.astype(np.int64)
        remedy = f"They run from {labels.min()} to {labels.max()}: leave out samples without a label."
    raise UsageError(
        f"{spec}: the labels are {labels.dtype} {list(labels.shape)}; one class index a sample is wanted.", remedy
    )


# ------------------------------------------------------------------------------------------------------- numbers


def _numbers(value: Any, name: str, spec: str) -> Array:
    """Convert to an array of numbers; floats become float32, and are finite. Raises `UsageError`."""
    try:
        array = _array(value)
    except _NoArray as error:
        raise UsageError(f"{spec}: {name} {error}.", error.remedy) from error
    except Exception as error:  # whatever a user's objects raise
        raise UsageError(
            f"{spec}: {name} ({type(value).__name__}) can't be read as an array: {reason(error)}.",
            "Give arrays or tensors of numbers, the batch as their first axis.",
        ) from error
    if array.dtype.kind not in "biuf":
        text = array.dtype.kind in "USO"
        raise UsageError(
            f"{spec}: {name} are {array.dtype}, not numbers.",
            _CLASSES if text and name == "the labels" else "Give arrays of numbers.",
        )
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


class _NoArray(Exception):
    """What keeps a value from being an array, as a phrase after its name, and what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def _array(value: Any) -> Array:
    """Convert whatever holds numbers. Raises `_NoArray`, or what the value itself raises."""
    if _is_tensor(value):
        return _from_tensor(value)
    if isinstance(value, Mapping):
        raise _NoArray(f"are a dict of {', '.join(map(str, value)) or 'nothing'}", "Give a single array or tensor.")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise _NoArray("are a masked array with values missing", "Fill them in, or leave these samples out.")
    if isinstance(value, list | tuple) and any(_is_tensor(row) or isinstance(row, np.ndarray) for row in value):
        return _stacked([_array(row) for row in value])
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):  # CuPy copies only when it is told to
        value = value.get()
    try:
        array = np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise _ragged() from error
    if array.dtype.kind == "V" and array.dtype.names is None:  # the floats and integers of ml_dtypes, such as bfloat16
        array = array.astype(np.float32 if "float" in array.dtype.name else np.int64)
    if array.dtype == object and array.ndim:
        rows = list(array)
        if not all(isinstance(row, str) or row is None for row in rows):
            return _stacked([row if np.isscalar(row) else _array(row) for row in rows])
    return array


def _stacked(rows: Sequence[Any]) -> Array:
    """Samples that were given one by one, as one array."""
    if len({np.shape(row) for row in rows}) > 1:
        raise _ragged()
    return np.stack([np.asarray(row) for row in rows])


def _ragged() -> _NoArray:
    return _NoArray(
        "have rows of different lengths or shapes", "Pad or cut the samples to one shape, as the network takes them."
    )


def _is_tensor(value: Any) -> bool:
    """Whether this is a tensor of torch, or of what behaves like it."""
    return all(hasattr(value, name) for name in ("detach", "cpu", "numpy", "is_floating_point"))


def _from_tensor(tensor: Any) -> Array:
    """The values of a tensor on any device, of any layout; floats as float32, which numpy has not all types for."""
    if getattr(tensor, "is_nested", False):
        raise _ragged()
    if getattr(getattr(tensor, "device", None), "type", None) == "meta":
        raise _NoArray("are tensors on the device 'meta', without values", "Give tensors that hold the samples.")
    tensor = tensor.detach()
    steps: tuple[tuple[bool, Callable[[Any], Any]], ...] = (
        (getattr(tensor, "is_quantized", False), lambda given: given.dequantize()),
        (str(getattr(tensor, "layout", "torch.strided")) != "torch.strided", lambda given: given.to_dense()),
        (True, lambda given: given.cpu()),
        (tensor.is_floating_point(), lambda given: given.float()),
        (hasattr(tensor, "resolve_neg"), lambda given: given.resolve_conj().resolve_neg()),
    )
    for applies, step in steps:
        if applies:
            tensor = step(tensor)
    return np.asarray(tensor.numpy())
