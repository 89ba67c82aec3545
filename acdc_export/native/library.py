"""A compiled library in Python, by ctypes and numpy: what a service would do, and all that measuring needs."""

from __future__ import annotations

import ctypes
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
        try:
            self._c = ctypes.CDLL(str(Path(path).resolve()))
            self._c.model_describe.restype = ctypes.POINTER(_Description)
        except (OSError, AttributeError) as error:
            raise EngineError(f"{path} can't be loaded: {error}", "Compile it again for this machine.") from error
        _declare(self._c)
        about = self._c.model_describe().contents
        if about.abi != _ABI:
            raise EngineError(f"{path} has ABI {about.abi}, this is for {_ABI}.", "Compile it again.")
        self.title, self.hash, self.version = (text.decode() for text in (about.name, about.hash, about.version))
        self.precision, self.weight_bytes, self.arena_bytes = (
            about.precision.decode(),
            about.weight_bytes,
            about.arena_bytes,
        )
        self.instruction_sets = tuple(about.instruction_sets.decode().split())
        self.inputs = tuple(map(_port, about.inputs[: about.input_count]))
        self.outputs = tuple(map(_port, about.outputs[: about.output_count]))
        self.layer_count: int = about.layer_count
        chosen = None if cpus is None else (ctypes.c_int * len(cpus))(*cpus)
        self._check(self._c.model_create(threads, chosen, len(cpus or ()), ctypes.byref(self._model)))
        self.threads = threads
        self.instruction_set: str = self._c.model_instruction_set().decode()

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
        return Bound(lambda: self._check(self._c.model_run(self._model, batch, taken, given)), outputs, arrays)

    def profile(self, inputs: Mapping[str, NDArray[Any]], repeats: int = 10) -> list[Timed]:
        """What each step takes for one sample: the least of `repeats` runs."""
        bound = self.bind(inputs)
        taken = (_REALS * len(self.inputs))(*(array.ctypes.data_as(_REALS) for array in bound.inputs))
        given = (_REALS * len(self.outputs))(*(array.ctypes.data_as(_REALS) for array in bound.outputs.values()))
        times = (ctypes.c_double * self.layer_count)()
        self._check(self._c.model_profile(self._model, taken, given, repeats, times))
        return [
            Timed(self._c.model_layer_name(at).decode(), self._c.model_layer_operator(at).decode(), time * 1e-9)
            for at, time in enumerate(times)
        ]

    def set_tiling(self, layer: int, kernel: int, tile: int, pixel_pieces: int, channel_pieces: int) -> None:
        """Cut a layer in another way, in this model only; for the compiler."""
        self._check(self._c.model_set_tiling(self._model, layer, kernel, tile, pixel_pieces, channel_pieces))

    def close(self) -> None:
        """End the threads, free the memory. The library itself stays loaded."""
        if self._model:
            self._c.model_destroy(self._model)
            self._model = ctypes.c_void_p()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status:
            raise EngineError(f"The library says: {self._c.model_error(status).decode()}.", "See its header, model.h.")


@dataclass(frozen=True)
class Bound:
    """A run with its inputs and outputs in place; call it."""

    call: Callable[[], None]
    outputs: dict[str, NDArray[np.float32]]
    inputs: list[NDArray[np.float32]]

    def __call__(self) -> None:
        self.call()


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
