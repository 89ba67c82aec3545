"""A compiled library: its C interface, its Python one, its threads, its memory. No call crashes, whatever is passed."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acdc_export.errors import EngineError, UsageError
from acdc_export.native import Library, Port

from .conftest import HERE, Built, build
from .networks import Net, parity, run

OK, NULL, THREADS, BATCH, _, _, _, AFFINITY, TILING = range(9)
POINTER = ctypes.POINTER(ctypes.c_float)


def residual() -> Net:
    """With a border, phases, a residual, a window over pools, two inputs and two outputs."""
    net = Net((5, 13, 11), (3,), seed=3)
    a = net.point(net.function(net.conv("x0", 13, density=0.4), "Relu"))
    b = net.point(net.function(net.binary("Add", net.conv(a, 13, density=0.2), a), "Relu"))
    c = net.point(net.function(net.conv(net.point(net.pool(b, "MaxPool", 3, 2, 1), same=b), 9, 3, strides=2), "Relu"))
    flat = net.point(net.flatten(net.point(net.global_pool(c))))
    net.outputs.append(net.gemm(flat, 7))
    net.outputs.append(net.function("x1", "Sigmoid"))
    return net


@pytest.fixture(scope="module")
def net() -> Net:
    return residual()


@pytest.fixture(scope="module", params=["fp32", "int8"])
def built(request: pytest.FixtureRequest, net: Net, tmp_path_factory: pytest.TempPathFactory) -> Built:
    model = net.model() if request.param == "fp32" else net.quantized()
    return build(model, tmp_path_factory.mktemp("library"), HERE, name=request.param)


@pytest.fixture
def raw(built: Built) -> ctypes.CDLL:
    """The C interface itself."""
    c = ctypes.CDLL(str(built.path))
    c.model_error.restype = c.model_instruction_set.restype = ctypes.c_char_p
    c.model_layer_name.restype = c.model_layer_operator.restype = ctypes.c_char_p
    c.model_destroy.argtypes = [ctypes.c_void_p]
    c.model_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    c.model_profile.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int, ctypes.c_void_p]
    c.model_set_tiling.argtypes = [ctypes.c_void_p] + [ctypes.c_int] * 5
    return c


@contextmanager
def created(c: ctypes.CDLL, threads: int = 1) -> Iterator[ctypes.c_void_p]:
    model = ctypes.c_void_p()
    assert c.model_create(threads, None, 0, ctypes.byref(model)) == OK
    yield model
    c.model_destroy(model)


def pointers(*arrays: NDArray[np.float32] | None) -> Any:
    return (POINTER * len(arrays))(*(None if array is None else array.ctypes.data_as(POINTER) for array in arrays))


# ------------------------------------------------------------------------------------------------- the C interface


def test_create_refuses(raw: ctypes.CDLL) -> None:
    model = ctypes.c_void_p(7)
    assert raw.model_create(1, None, 0, None) == NULL
    for threads in (0, -1, 1025, 2**31 - 1, -(2**31)):
        assert raw.model_create(threads, None, 0, ctypes.byref(model)) == THREADS
        assert model.value is None
    for cpus in ([-1], [10**6], [], [0, 2**31 - 1]):
        array = (ctypes.c_int * len(cpus))(*cpus)
        assert raw.model_create(2, array, len(cpus), ctypes.byref(model)) == AFFINITY
        assert model.value is None


def test_run_refuses(raw: ctypes.CDLL, net: Net) -> None:
    x, y = np.zeros((1, 5, 13, 11), np.float32), np.zeros((1, 3), np.float32)
    out = [np.full((1, size), 5.0, np.float32) for size in (7, 3)]
    with created(raw) as model:
        good = pointers(x, y), pointers(*out)
        assert raw.model_run(None, 1, *good) == NULL
        assert raw.model_run(model, 1, None, good[1]) == NULL
        assert raw.model_run(model, 1, good[0], None) == NULL
        for inputs in (pointers(None, y), pointers(x, None)):
            assert raw.model_run(model, 1, inputs, good[1]) == NULL
        for outputs in (pointers(None, out[1]), pointers(out[0], None)):
            assert raw.model_run(model, 1, good[0], outputs) == NULL
        for batch in (0, -1, -(2**31)):
            assert raw.model_run(model, batch, *good) == BATCH
        assert all((values == 5).all() for values in out)
        assert raw.model_run(model, 1, *good) == OK
        assert not any((values == 5).any() for values in out)


def test_the_rest_refuses(raw: ctypes.CDLL, built: Built) -> None:
    raw.model_destroy(None)
    steps = len(built.layout.steps)
    for layer in (-1, steps, 2**31 - 1):
        assert raw.model_layer_name(layer) is None
        assert raw.model_layer_operator(layer) is None
    assert raw.model_layer_name(0) is not None
    times = (ctypes.c_double * steps)()
    x, y, *out = (np.zeros((1, size), np.float32) for size in (5 * 13 * 11, 3, 7, 3))
    product = next(at for at, step in enumerate(built.layout.steps) if step.kind.startswith("PRODUCT"))
    other = next(at for at, step in enumerate(built.layout.steps) if not step.kind.startswith("PRODUCT"))
    with created(raw) as model:
        assert raw.model_profile(model, pointers(x, y), pointers(*out), 1, None) == NULL
        assert raw.model_profile(None, pointers(x, y), pointers(*out), 1, times) == NULL
        assert raw.model_profile(model, pointers(x, y), pointers(*out), 0, times) == OK
        assert raw.model_set_tiling(None, product, 0, 1, 1, 1) == NULL
        for layer in (-1, steps, other):
            assert raw.model_set_tiling(model, layer, 0, 1, 1, 1) == TILING
        kernel = built.plan.choices[product].kernel
        for tiling in (
            (1 - kernel, 1, 1, 1), (kernel, 0, 1, 1), (kernel, 9, 1, 1), (kernel, 1, 0, 1), (kernel, 1, 1, 0),
            (kernel, 1, 4097, 1), (kernel, 1, 1, 2**31 - 1), (kernel, -1, 1, 1),
        ):  # fmt: skip
            assert raw.model_set_tiling(model, product, *tiling) == TILING, tiling
        assert raw.model_set_tiling(model, product, kernel, 1, 2, 2) == OK


def test_every_status_has_a_text(raw: ctypes.CDLL) -> None:
    texts = [raw.model_error(status) for status in range(9)]
    assert len(set(texts)) == 9
    assert {raw.model_error(status) for status in (-1, 10, 2**31 - 1)} == {b"unknown status"}


def test_a_processor_that_lacks_what_was_compiled(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a processor without these instructions would be: none of the sets serves."""
    monkeypatch.setenv("MODEL_INSTRUCTION_SET", "none of them")
    with pytest.raises(EngineError, match="the processor has none of the instruction sets"):
        Library(built.path)


# --------------------------------------------------------------------------------------------- the Python interface


def test_what_a_library_says_of_itself(built: Built) -> None:
    with built.library() as library:
        assert library.inputs == (Port("x0", (5, 13, 11)), Port("x1", (3,)))
        assert [port.shape for port in library.outputs] == [(7,), (3,)]
        assert library.precision == ("int8" if built.path.stem == "int8" else "fp32")
        assert library.hash == "0" * 64
        assert 0 < library.weight_bytes < built.path.stat().st_size
        assert library.layer_count == len(built.layout.steps)


def test_inputs_that_are_refused(built: Built, net: Net) -> None:
    good = net.samples(2)
    with built.library() as library:
        for wrong, said in (
            ({"x0": good["x0"]}, "no input x1"),
            ({**good, "x1": good["x1"][:1]}, "batches"),
            ({name: array[:0] for name, array in good.items()}, "batches"),
            ({**good, "x0": good["x0"].astype(np.float64)}, "float64"),
            ({**good, "x0": good["x0"].astype(np.uint8)}, "uint8"),
            ({**good, "x0": good["x0"][:, :, :, :5]}, "(2, 5, 13, 5)"),
            ({**good, "x0": good["x0"][0]}, "(5, 13, 11)"),
            ({**good, "x0": np.float32(1)}, "()"),
            ({**good, "x0": good["x0"].astype(">f4")}, ">f4"),
        ):
            with pytest.raises(UsageError) as raised:
                library.run(wrong)
            assert said in raised.value.message
        library.run({**good, "more": good["x0"]})


def test_inputs_that_are_no_contiguous_memory(built: Built, net: Net) -> None:
    x = net.samples(3)
    with built.library() as library:
        expected = library.run(x)
        strided = {"x0": np.asfortranarray(x["x0"]), "x1": np.repeat(x["x1"], 2, axis=1)[:, ::2]}
        for name, values in library.run(strided).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_closed_library_says_so(built: Built, net: Net) -> None:
    library = Library(built.path)
    bound = library.bind(net.samples())
    library.close()
    library.close()
    for call in (bound, lambda: library.run(net.samples()), lambda: library.profile(net.samples())):
        with pytest.raises(EngineError, match="is closed"):
            call()


def test_files_that_are_no_libraries(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    (tmp_path / "empty.so").write_text("")
    for path in (tmp_path / "missing.so", tmp_path / "text.so", tmp_path / "empty.so", tmp_path):
        with pytest.raises(EngineError):
            Library(path)
    (tmp_path / "other.c").write_text("int other(void) { return 1; }")
    subprocess.run(["cc", "-shared", "-fPIC", "other.c", "-o", "other.so"], cwd=tmp_path, check=True)
    with pytest.raises(EngineError, match="is no compiled model"):
        Library(tmp_path / "other.so")


def test_a_library_that_was_compiled_anew(tmp_path: Path) -> None:
    """The system's loader goes by paths, and would take the old file for the new one."""
    nets = []
    for seed in (1, 2):
        nets.append(Net((3, 4, 4), seed=seed))
        nets[-1].outputs.append(nets[-1].conv("x0", 4))
    x = nets[0].samples()
    for net in nets:
        with build(net.model(), tmp_path).library() as library:
            assert parity(library.run(x)["t0"], run(net.model(), x)[0]) < 1e-4
    old = build(nets[0].model(), tmp_path)
    with old.library():
        again = tmp_path / "again"
        again.mkdir()
        build(nets[1].model(), again).path.replace(old.path)
        with pytest.raises(EngineError, match="is in use, and was compiled anew"):
            Library(old.path)
    with Library(old.path) as library:
        assert parity(library.run(x)["t0"], run(nets[1].model(), x)[0]) < 1e-4


# ------------------------------------------------------------------------------------------------ batches and threads


def test_batches_are_their_samples(built: Built, net: Net) -> None:
    x = net.samples(7)
    with built.library(threads=2) as library:
        whole = library.run(x)
        for at in range(7):
            for name, values in library.run({name: array[at : at + 1] for name, array in x.items()}).items():
                np.testing.assert_array_equal(values[0], whole[name][at])


def test_threads_make_no_difference(built: Built, net: Net) -> None:
    x = net.samples(5)
    results = []
    for threads in (1, 2, 3, 8):
        with built.library(threads=threads) as library:
            results.append(library.run(x))
    for other in results[1:]:
        for name, values in results[0].items():
            np.testing.assert_array_equal(other[name], values)


def test_threads_that_are_held_up(tmp_path: Path) -> None:
    """More threads than processors: some come late from a run, when the next has begun.

    Seven samples are six that threads take whole, and one that they share: two kinds of runs in turns.
    """
    net = Net((8, 5, 5))
    x = "x0"
    for _ in range(30):
        x = net.function(net.conv(x, 8, density=0.3), "Relu")
    net.outputs.append(x)
    built = build(net.model(), tmp_path)
    samples = [net.samples(7, seed) for seed in range(4)]
    with built.library() as library:
        expected = [library.run(inputs)[x] for inputs in samples]
    with built.library(threads=3) as library:
        bound = [library.bind(inputs) for inputs in samples]
        for turn in range(2000):
            bound[turn % 4]()
            np.testing.assert_array_equal(bound[turn % 4].outputs[x], expected[turn % 4])


def test_several_models_and_several_callers(built: Built, net: Net) -> None:
    """Two models of one library, each with two callers at a time, who get what they asked for."""
    samples = [net.samples(3, seed) for seed in range(4)]
    with built.library() as library:
        expected = [library.run(inputs) for inputs in samples]
    wrong: list[str] = []

    def call(library: Library, at: int) -> None:
        for _ in range(60):
            for name, values in library.run(samples[at]).items():
                if not np.array_equal(values, expected[at][name]):
                    wrong.append(f"caller {at}, output {name}")

    with built.library(threads=2) as first, built.library(threads=2) as second:
        callers = [threading.Thread(target=call, args=((first, second)[at // 2], at)) for at in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


def test_nothing_is_left_behind(built: Built, net: Net) -> None:
    """Threads end with their model, and its memory is given back."""
    x = net.samples()
    with built.library(threads=4) as library:
        library.run(x)
    before, size = _threads(), _resident()
    for _ in range(200):
        with built.library(threads=4) as library:
            library.run(x)
    assert _left(before) == set()
    library = Library(built.path, threads=3)
    del library
    gc.collect()
    assert _left(before) == set()
    assert _resident() - size < 8 * 2**20


def test_affinity(built: Built, net: Net) -> None:
    """Only the threads that a model starts are moved."""
    own, mine = os.sched_getaffinity(0), threading.get_native_id()
    before = _threads()
    chosen = min(own)
    with Library(built.path, threads=3, cpus=[chosen]) as library:
        library.run(net.samples())
        started = _threads() - before
        assert len(started) == 2
        assert all(os.sched_getaffinity(thread) == {chosen} for thread in started)
        assert os.sched_getaffinity(mine) == own


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def _left(before: set[int]) -> set[int]:
    """Threads that are there and were not. One that has ended may be listed for a moment."""
    for _ in range(100):
        if not _threads() - before:
            break
        time.sleep(0.05)
    return _threads() - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.slow
def test_a_million_runs(built: Built, tmp_path: Path) -> None:
    """Of a network of the demo's size: memory does not grow."""
    net = Net((1, 8, 8))
    x = net.point(net.function(net.conv("x0", 16, density=0.2), "Relu"))
    x = net.point(net.function(net.conv(x, 32, strides=2, density=0.1), "Relu"))
    net.outputs.append(net.gemm(net.flatten(net.point(net.global_pool(x))), 10))
    model = net.model() if built.path.stem == "fp32" else net.quantized()
    with build(model, tmp_path).library(threads=1) as library:
        bound = library.bind(net.samples())
        for _ in range(10_000):
            bound()
        size = _resident()
        first = {name: values.copy() for name, values in bound.outputs.items()}
        for _ in range(1_000_000):
            bound()
        assert _resident() - size < 2**20
        for name, values in first.items():
            np.testing.assert_array_equal(bound.outputs[name], values)


# ------------------------------------------------------------------------------------------ memory that isn't theirs


class Guarded:
    """An FP32 array that ends, or begins, where memory does: who touches a byte beyond is ended by the system."""

    def __init__(self, shape: tuple[int, ...], at_end: bool) -> None:
        size = 4 * int(np.prod(shape))
        pages = -(-size // mmap.PAGESIZE)
        self.memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for page in (0, pages + 1):
            assert protect(address + page * mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
        start = mmap.PAGESIZE + (pages * mmap.PAGESIZE - size if at_end else 0)
        self.array = np.frombuffer(self.memory, np.float32, int(np.prod(shape)), start).reshape(shape)


@pytest.mark.parametrize("at_end", [False, True], ids=["begin", "end"])
@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_beyond_inputs_and_outputs_is_touched(built: Built, net: Net, at_end: bool, threads: int) -> None:
    x = net.samples(3)
    with built.library(threads=threads) as library:
        expected = library.run(x)
        guarded = {name: Guarded(array.shape, at_end) for name, array in x.items()}
        for name, array in x.items():
            guarded[name].array[:] = array
        outputs = {name: Guarded(array.shape, at_end) for name, array in expected.items()}
        c = library._library
        inputs = pointers(*(guarded[port.name].array for port in library.inputs))
        given = pointers(*(outputs[port.name].array for port in library.outputs))
        assert c.model_run(library._model, 3, inputs, given) == OK
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs[name].array, array)


# ----------------------------------------------------------------------------------- what is not a number, or infinite


@pytest.mark.parametrize("instruction_set", HERE)
def test_odd_values_do_no_harm(instruction_set: str, built: Built, net: Net) -> None:
    """Of them no result is promised, but that of the samples beside them is."""
    with built.library(instruction_set) as library:
        good = net.samples(3)
        expected = library.run(good)
        for value in (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45):
            x = {name: array.copy() for name, array in good.items()}
            x["x0"][1].flat[::3], x["x1"][1] = value, value
            given = library.run(x)
            for name, values in expected.items():
                np.testing.assert_array_equal(given[name][[0, 2]], values[[0, 2]])
            library.run({name: np.full_like(array, value) for name, array in good.items()})
