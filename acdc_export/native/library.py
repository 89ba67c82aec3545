"""A compiled library in Python, by ctypes and numpy: what a service would do, and all that measuring needs."""

from __future__ import annotations

import _ctypes
import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UsageError

_ABI = 1
_REALS = ctypes.POINTER(ctypes.c_float)


class _Port(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("dimensions", ctypes.c_int * 3),
        ("size", ctypes.c_long),
    )


class _Description(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("hash", ctypes.c_char_p),
        ("version", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
        ("instruction_sets", ctypes.c_char_p),
        ("input_count", ctypes.c_int),
        ("inputs", ctypes.POINTER(_Port)),
        ("output_count", ctypes.c_int),
        ("outputs", ctypes.POINTER(_Port)),
        ("layer_count", ctypes.c_int),
        ("weight_bytes", ctypes.c_long),
        ("arena_bytes", ctypes.c_long),
    )


@dataclass(frozen=True)
class Port:
    """An input or output of a network: FP32, of this shape without the batch."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """What a step takes, in seconds."""

    name: str
    operator: str
    seconds: float


class Library:
    """A model of a compiled library, with threads of its own. Close it, or use it as a context manager.

    Args:
        path: the library. It is code: load only what you trust.
        threads: so many threads compute, the calling one included.
        cpus: processors that the others run on; those of the calling thread if None.

    Raises:
        EngineError: it can't be loaded, is of another ABI, or can't run on this processor.
    """

    def __init__(self, path: Path | str, threads: int = 1, cpus: Sequence[int] | None = None) -> None:
        self._model = ctypes.c_void_p()
        self._c: ctypes.CDLL | None = _load(Path(path).resolve())
        try:
            self._describe(path)
            chosen = None if cpus is None else (ctypes.c_int * len(cpus))(*cpus)
            self._check(self._c.model_create(threads, chosen, len(cpus or ()), ctypes.byref(self._model)))
        except BaseException:
            self.close()
            raise
        self.threads = threads
        self.instruction_set: str = self._c.model_instruction_set().decode()

    def _describe(self, path: Path | str) -> None:
        c = self._library
        try:
            c.model_describe.restype = ctypes.POINTER(_Description)
            about = c.model_describe().contents
            if about.abi != _ABI:
                raise EngineError(f"{path} has ABI {about.abi}, this is for {_ABI}.", "Compile it again.")
            _declare(c)
        except AttributeError as error:
            raise EngineError(f"{path} is no compiled model: {error}.", "Name one of `native.compile`.") from error
        self.title, self.hash, self.version, self.precision = (
            text.decode() for text in (about.name, about.hash, about.version, about.precision)
        )
        self.weight_bytes: int = about.weight_bytes
        self.arena_bytes: int = about.arena_bytes
        self.layer_count: int = about.layer_count
        self.instruction_sets = tuple(about.instruction_sets.decode().split())
        self.inputs = tuple(map(_port, about.inputs[: about.input_count]))
        self.outputs = tuple(map(_port, about.outputs[: about.output_count]))

    @property
    def _library(self) -> ctypes.CDLL:
        if self._c is None:
            raise EngineError("The library is closed.", "Open it again: native.Library(path).")
        return self._c

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Compute a batch: arrays of shape (batch, *shape) by name. Raises `UsageError` for others."""
        bound = self.bind(inputs)
        bound()
        return bound.outputs

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> Bound:
        """Return a function of no arguments that computes `inputs` into arrays that it keeps as `outputs`."""
        arrays = [_array(port, inputs) for port in self.inputs]
        batches = {len(array) for array in arrays}
        if len(batches) != 1 or 0 in batches:
            raise UsageError(
                f"Inputs have batches of {sorted(batches)}.", "Give all inputs the same number of samples."
            )
        (batch,) = batches
        outputs = {port.name: np.empty((batch, *port.shape), np.float32) for port in self.outputs}
        taken = (_REALS * len(arrays))(*(array.ctypes.data_as(_REALS) for array in arrays))
        given = (_REALS * len(outputs))(*(array.ctypes.data_as(_REALS) for array in outputs.values()))
        return Bound(lambda: self._check(self._library.model_run(self._model, batch, taken, given)), outputs, arrays)

    def profile(self, inputs: Mapping[str, NDArray[Any]], repeats: int = 10) -> list[Timed]:
        """What each step takes for one sample: the least of `repeats` runs."""
        bound = self.bind(inputs)
        taken = (_REALS * len(self.inputs))(*(array.ctypes.data_as(_REALS) for array in bound.inputs))
        given = (_REALS * len(self.outputs))(*(array.ctypes.data_as(_REALS) for array in bound.outputs.values()))
        times = (ctypes.c_double * self.layer_count)()
        c = self._library
        self._check(c.model_profile(self._model, taken, given, repeats, times))
        return [
            Timed(c.model_layer_name(at).decode(), c.model_layer_operator(at).decode(), time * 1e-9)
            for at, time in enumerate(times)
        ]

    def set_tiling(self, layer: int, kernel: int, tile: int, pixel_pieces: int, channel_pieces: int) -> None:
        """Cut a layer in another way, in this model only; for the compiler."""
        self._check(self._library.model_set_tiling(self._model, layer, kernel, tile, pixel_pieces, channel_pieces))

    def close(self) -> None:
        """End the threads, free the memory, unload the library."""
        if self._c is None:
            return
        if self._model:
            self._c.model_destroy(self._model)
        _unload(self._c)
        self._model, self._c = ctypes.c_void_p(), None

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_c", None) is not None:
            self.close()

    def _check(self, status: int) -> None:
        if status:
            said = self._library.model_error(status).decode()
            raise EngineError(f"The library says: {said}.", "Its header says more: model_status.")


@dataclass(frozen=True)
class Bound:
    """A run with its inputs and outputs in place; call it."""

    call: Callable[[], None]
    outputs: dict[str, NDArray[np.float32]]
    inputs: list[NDArray[np.float32]]

    def __call__(self) -> None:
        self.call()


_files: dict[str, tuple[int, int]] = {}  # device and inode of loaded libraries, by path
_uses: Counter[str] = Counter()


def _load(path: Path) -> ctypes.CDLL:
    """Load a library. The system's loader goes by names: it would take an old file of this name for the new one."""
    try:
        status = path.stat()
        identity = status.st_dev, status.st_ino
        if _files.get(str(path), identity) != identity:
            raise EngineError(f"{path} is in use, and was compiled anew since.", "Close the one in use first.")
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path} can't be loaded: {error}", "Compile it again for this machine.") from error
    _files[str(path)] = identity
    _uses[str(path)] += 1
    return library


def _unload(library: ctypes.CDLL) -> None:
    name = library._name
    _ctypes.dlclose(library._handle)
    _uses[name] -= 1
    if not _uses[name]:
        del _files[name], _uses[name]


def _declare(c: ctypes.CDLL) -> None:
    reals = ctypes.POINTER(_REALS)
    c.model_instruction_set.restype = c.model_error.restype = ctypes.c_char_p
    c.model_layer_name.restype = c.model_layer_operator.restype = ctypes.c_char_p
    c.model_create.argtypes = [
        ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.POINTER(ctypes.c_void_p),
    ]  # fmt: skip
    c.model_run.argtypes = [ctypes.c_void_p, ctypes.c_int, reals, reals]
    c.model_destroy.argtypes = [ctypes.c_void_p]
    c.model_destroy.restype = None
    c.model_profile.argtypes = [ctypes.c_void_p, reals, reals, ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
    c.model_set_tiling.argtypes = [ctypes.c_void_p] + [ctypes.c_int] * 5


def _port(port: _Port) -> Port:
    return Port(port.name.decode(), tuple(port.dimensions[: port.rank]))


def _array(port: Port, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    if port.name not in inputs:
        raise UsageError(f"There is no input {port.name}.", f"Given were: {', '.join(inputs) or 'none'}.")
    array = inputs[port.name]
    if array.dtype != np.float32 or array.shape[1:] != port.shape:
        expected = ", ".join(map(str, ("batch", *port.shape)))
        raise UsageError(f"The input {port.name} is {array.dtype} {array.shape}.", f"It takes float32 ({expected}).")
    return np.ascontiguousarray(array)
