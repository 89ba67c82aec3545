"""The worker answers calls, and leaves nothing when it crashes, hangs, is interrupted or is orphaned."""

from __future__ import annotations

import gc
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import acdc_export
from acdc_export import resources
from acdc_export.config import Target
from acdc_export.engines import Environment, InstalledTarget, Timeouts, Worker, environment, open_engine, worker
from acdc_export.errors import EngineDied, EngineTimeout, ModelRefused, RuntimeUnavailable, UsageError
from acdc_export.evidence.engine import Engine

MODEL = Path("some.onnx")
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
Make = Callable[..., Target]


@pytest.fixture
def start(make_target: Make, here: Environment) -> Callable[..., Worker]:
    """Opens a worker on a made-up target; keyword arguments as `make_target` has them."""

    def open_it(timeouts: Timeouts = worker.DEFAULT_TIMEOUTS, cpus: Any = None, **lines: str) -> Worker:
        target = make_target(**lines)
        return open_engine(target, here, MODEL, batch_size=2, threads=3, cpus=cpus, timeouts=timeouts)

    return open_it


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers of this test have their folders here: other tests have theirs in /dev/shm at the same time."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(worker, "_MEMORY", folder)
    return folder


def test_answers(start: Callable[..., Worker]) -> None:
    with start() as engine:
        same: Engine = engine  # mypy's word that it satisfies the protocol
        info = same.info()
        assert info.items() >= {"runtime": "fake", "version": "1.0", "batch_size": 2, "threads": 3}.items()
        assert info["model"] == str(MODEL.absolute())
        outputs = engine.run(X)
        assert list(outputs) == ["x/out"]
        np.testing.assert_array_equal(outputs["x/out"], 2 * X["x"])
        assert outputs["x/out"].dtype == np.float32
        times = engine.time(X, 7).nanoseconds
        assert times.shape == (7,)
        assert times.dtype == np.int64
        assert (times >= 0).all()
        assert engine.time(X, 0).nanoseconds.shape == (0,)
        assert engine.peak_memory() > 2**20


@pytest.mark.parametrize("precision", [None, "fp32", "default", "int8"])
def test_what_it_computes_in_is_the_engine_s_to_know(make_target: Make, here: Environment, precision: Any) -> None:
    options = {} if precision is None else {"precision": precision}
    installed = InstalledTarget(make_target(), here)
    with installed.open(MODEL, batch_size=1, cpus=sorted(os.sched_getaffinity(0))[:1], **options) as engine:
        assert engine.info()["precision"] == (precision or "fp32")


BUSY = "until = time.perf_counter() + 0.1\n            while time.perf_counter() < until: pass"


def test_what_a_run_had_of_the_processor(start: Callable[..., Worker]) -> None:
    """Alone, a run gets nearly all of the processor. Beside a process on its core it is preempted, and gets half."""
    cpu = min(os.sched_getaffinity(0))
    with start(cpus=[cpu], top="import time", once=BUSY) as engine:
        engine.time(X, 1)
        alone = [engine.time(X, 1) for _ in range(5)]
        spin = "import os; os.sched_setaffinity(0, [" + str(cpu) + "])\nwhile True: pass"
        neighbour = subprocess.Popen([sys.executable, "-c", spin])
        try:
            time.sleep(0.2)
            beside = engine.time(X, 5)
        finally:
            neighbour.kill()
            neighbour.wait()
    assert 0.5 < max(turn.processor / turn.nanoseconds.sum() for turn in alone) < 1.1  # the tests run beside others
    assert beside.processor / beside.nanoseconds.sum() < 0.8
    assert beside.preempted > 0
    with start(top="import time", once="time.sleep(0.05)") as engine:
        asleep = engine.time(X, 2)
    assert asleep.processor < 0.2 * asleep.nanoseconds.sum()


def test_a_thread_that_runs_is_counted_up_to_now(start: Callable[..., Worker]) -> None:
    """A pool's thread spins on beside the thread that measures."""
    top = """
import threading, time
def spin():
    while True: sum(range(1000))
threading.Thread(target=spin, daemon=True).start()
"""
    with start(top=top, once="time.sleep(0.03)") as engine:
        engine.time(X, 1)
        turns = [engine.time(X, 1) for _ in range(9)]
    assert max(turn.processor / turn.nanoseconds.sum() for turn in turns) > 0.5


def test_last_words_move_no_cursor(start: Callable[..., Worker]) -> None:
    output = "\\x1b[1;31mtensor\\x1b[0m was \\x07 lost"
    with start(run=f"import os; os.write(2, b'{output}'); os._exit(1)") as engine, pytest.raises(EngineDied) as caught:
        engine.run(X)
    assert caught.value.message.endswith("its last words: tensor was  lost")


def test_the_step_of_the_clock(start: Callable[..., Worker]) -> None:
    with start() as engine:
        step = engine.timer()
    assert isinstance(step, float)
    assert 1 <= step < 1e6


@pytest.mark.parametrize(
    ("readings", "step"),
    [
        (lambda count: 30 * count, 30),
        (lambda count: count // 100 * 1000, 1000),  # coarse: most readings are the same as the one before
        (lambda count: count // 9000 * 4_000_000, 4_000_000),  # so coarse that it moves once in 9000 of them
        (lambda count: 30 * count - 10**9 * (count > 1000), 30),  # set back once
        (lambda count: 30 * count + 10**9 * (count > 1000), 30),  # interrupted once
    ],
)
def test_the_step_of_a_clock_that_is_odd(
    monkeypatch: pytest.MonkeyPatch, readings: Callable[[int], int], step: int
) -> None:
    spec = importlib.util.spec_from_file_location("serve", resources.root("targets") / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the wheel carries what lies there
    spec.loader.exec_module(serve)
    counts = iter(range(100_000))
    monkeypatch.setattr(serve, "time", SimpleNamespace(perf_counter_ns=lambda: readings(next(counts))))
    assert serve.Served(Path()).timer() == step


@pytest.mark.parametrize(
    "rows",
    [
        "[{'name': 'a'}]",
        "[{'name': 'a', 'operator': 'b', 'seconds': 'long'}]",
        "[{'name': 'a', 'operator': 'b', 'seconds': -1}]",
        "5",
    ],
)
def test_a_profile_that_is_none(make_target: Callable[..., Target], here: Environment, rows: str) -> None:
    """An engine.py of one's own may give anything."""
    target = make_target()
    engine_file = target.folder / "engine.py"
    engine_file.write_text(
        f"{engine_file.read_text()}\n    def profile(self, inputs, repeats):\n        return {rows}\n"
    )
    with (
        open_engine(target, here, MODEL, batch_size=1, threads=1) as engine,
        pytest.raises(ModelRefused, match="names, operators and seconds"),
    ):
        engine.profile(X, 3)


@pytest.mark.parametrize("times", ["[1, 2]", "['soon'] * 3", "5", "None"])
def test_a_clock_of_its_own_that_is_none(make_target: Callable[..., Target], here: Environment, times: str) -> None:
    target = make_target()
    engine_file = target.folder / "engine.py"
    engine_file.write_text(f"{engine_file.read_text()}\n    def time(self, once, repeats):\n        return {times}\n")
    with (
        open_engine(target, here, MODEL, batch_size=1, threads=1) as engine,
        pytest.raises(ModelRefused, match="its `time` gives"),
    ):
        engine.time(X, 3)


def test_processor_time(start: Callable[..., Worker]) -> None:
    # In a thread that has ended, of a process with an awkward name.
    top = """
import ctypes, threading
ctypes.CDLL(None).prctl(15, b'a) R 1 (b c', 0, 0, 0)
def burn():
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        pass
"""
    run = "thread = threading.Thread(target=burn); thread.start(); thread.join()"
    with start(top=top, run=run) as engine:
        assert ") R 1 (" in Path(f"/proc/{engine.pid}/stat").read_text()
        before, began = engine.cpu_seconds(), time.perf_counter()
        engine.run(X)
        engine.pause()
        after, wall = engine.cpu_seconds(), time.perf_counter() - began
        assert 0.27 < after - before < wall + 0.1
        time.sleep(0.1)
        assert engine.cpu_seconds() == after


def test_processor_time_of_one_that_loads(start: Callable[..., Worker], make_target: Make, here: Environment) -> None:
    target = make_target(
        load="time.sleep(0.3); end = time.process_time() + 0.2\n    while time.process_time() < end: pass"
    )
    with open_engine(target, here, MODEL, batch_size=1, threads=1, wait=False) as engine:
        assert engine.cpu_seconds() > 0.18


def test_processor_time_of_one_that_ended(start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    with start(Timeouts(close=0.3), run="os.kill(os.getpid(), signal.SIGSEGV)") as engine:
        with pytest.raises(EngineDied):
            engine.run(X)
        with pytest.raises(EngineDied, match=r"died in `cpu_seconds` \(SIGSEGV\)"):
            engine.cpu_seconds()
        monkeypatch.setattr(worker, "_has_ended", lambda process: False)  # it will have, a moment later
        with pytest.raises(EngineDied, match=r"died in `cpu_seconds` \(SIGSEGV\)"):
            engine.cpu_seconds()
    with pytest.raises(EngineDied, match="was closed"):
        engine.cpu_seconds()


def test_names_and_layouts_of_arrays_do_not_matter(start: Callable[..., Worker]) -> None:
    inputs = {
        "file": np.asfortranarray(X["x"]),
        "a/b.npy": np.array(3, dtype=np.int8),
        "../up": X["x"][:, ::2],
        "empty": np.zeros((0, 4), bool),
    }
    with start() as engine:
        outputs = engine.run(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(outputs[name + "/out"], 2 * array)
        assert outputs[name + "/out"].shape == array.shape


def test_set_before_the_runtime_is_imported(start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    core = max(os.sched_getaffinity(0))
    top = "WHEN = (os.environ['OMP_NUM_THREADS'], os.sched_getaffinity(0), '/nowhere' in sys.path)"
    check = f"assert WHEN == ('3', {{{core}}}, False), WHEN"
    # numpy's own threads, too, were made with these in place.
    everywhere = "assert {tuple(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')}"
    with start(top=top, load=f"{check}; {everywhere} == {{({core},)}}", cpus=[core]) as engine:
        info = engine.info()
    assert (info["omp"], info["cpus"], info["here"]) == ("3", [core], "set")


def test_the_host_imports_the_package_that_runs(make_target: Make, tmp_path: Path) -> None:
    """Its processes don't get PYTHONPATH, and another release may be installed."""
    target = make_target(top="import acdc_export", run="return {'at': np.array(acdc_export.__file__)}")
    with open_engine(target, environment.host(), MODEL, batch_size=1, threads=1) as engine:
        assert engine.run(X)["at"] == acdc_export.__file__


def test_a_core_that_is_not_there(start: Callable[..., Worker]) -> None:
    with pytest.raises(UsageError, match="may use"):
        start(cpus=[100_000])


def test_leaves_nothing_in_the_target_folder(start: Callable[..., Worker], tmp_path: Path) -> None:
    start().close()
    assert sorted(path.name for path in (tmp_path / "fake target").iterdir()) == ["engine.py", "requirements.txt"]


def test_native_prints_do_not_reach_the_protocol(start: Callable[..., Worker]) -> None:
    noise = r"""os.write(1, b'DeepSparse, Copyright\n{"result": 1}\n'); print('more'); sys.stdin.read()"""
    with start(top=noise, run=noise) as engine:
        np.testing.assert_array_equal(engine.run(X)["x/out"], 2 * X["x"])


def test_a_flood_on_standard_error_blocks_nothing(start: Callable[..., Worker]) -> None:
    flood = "os.write(2, b'noise\\n' * 1_000_000)"
    words = "SIGABRT.*last words: the last\n"
    with (
        start(run=f"{flood}; os.write(2, b'the last\\n'); os.abort()") as engine,
        pytest.raises(EngineDied, match=words),
    ):
        engine.run(X)


def test_a_crash_while_loading(start: Callable[..., Worker], is_gone: Callable[[int], bool], memory: Path) -> None:
    with pytest.raises(EngineDied) as caught:
        start(load="os.write(2, b'about to crash\\n\\n'); os.kill(os.getpid(), signal.SIGSEGV)")
    assert caught.value.message == "fake with some.onnx died in `load` (SIGSEGV); its last words: about to crash"
    assert not list(memory.iterdir())


def test_a_crash_while_running_and_every_call_after_it(start: Callable[..., Worker]) -> None:
    with start(once="sys.exit(5)") as engine:
        for call in (lambda: engine.time(X, 3), engine.info, engine.pause, lambda: engine.run(X)):
            with pytest.raises(EngineDied, match="exit status 5"):
                call()
    with pytest.raises(EngineDied, match="was closed"):
        engine.info()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"load": "raise ValueError('no such\\n  operator')"}, "refused `load`: ValueError: no such operator"),
        ({"load": "raise MemoryError"}, "refused `load`: MemoryError: "),
        ({"run": "inputs['z']"}, "refused `run`: KeyError: 'z'"),
        ({"once": "1 / 0"}, "refused `time`: ZeroDivisionError: division by zero"),
    ],
)
def test_an_exception_of_the_runtime_is_one_line(
    start: Callable[..., Worker], lines: dict[str, str], message: str
) -> None:
    def use() -> None:
        with start(**lines) as engine:
            engine.time(X, 1)
            engine.run(X)

    with pytest.raises(ModelRefused) as caught:
        use()
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2


def test_goes_on_after_an_exception(start: Callable[..., Worker]) -> None:
    with start(run="assert inputs['x'].ndim == 2, 'two dimensions'") as engine:
        with pytest.raises(ModelRefused, match="two dimensions"):
            engine.run({"x": np.zeros(3)})
        assert engine.run(X)["x/out"].shape == (2, 3)


def test_a_runtime_that_is_not_there(start: Callable[..., Worker]) -> None:
    with pytest.raises(RuntimeUnavailable, match="No module named 'no_such_runtime'"):
        start(top="import no_such_runtime")


def test_an_interpreter_that_is_not_there(make_target: Make, tmp_path: Path, memory: Path) -> None:
    missing = Environment(tmp_path / "bin" / "python", {}, tmp_path)
    with pytest.raises(RuntimeUnavailable, match="does not start"):
        open_engine(make_target(), missing, MODEL, batch_size=1, threads=1)
    assert not list(memory.iterdir())


def test_a_hang_while_loading_is_ended(start: Callable[..., Worker], memory: Path) -> None:
    with pytest.raises(EngineTimeout, match=r"did not answer to `load` within 3 s; its last words: busy"):
        start(Timeouts(load=3.0), load="os.write(2, b'busy'); time.sleep(1000)")
    assert not list(memory.iterdir())


def test_a_hang_while_running_is_ended(start: Callable[..., Worker], is_gone: Callable[[int], bool]) -> None:
    with start(Timeouts(run=0.5), run="os.kill(0, signal.SIGSTOP)") as engine:
        with pytest.raises(EngineTimeout, match="did not answer to `run`"):
            engine.run(X)
        assert is_gone(engine.pid)


def test_a_child_that_holds_the_pipe_does_not_hide_a_death(
    start: Callable[..., Worker], is_gone: Callable[[int], bool], killed: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "child"
    fork = f"""
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        open({str(file)!r}, 'w').write(str(child))
        os._exit(3)
    """
    with start(run=fork.strip()) as engine:
        with pytest.raises(EngineDied, match="exit status 3"):
            engine.run(X)
        killed.append(int(file.read_text()))
        assert is_gone(killed[0])


def test_paused_and_resumed(start: Callable[..., Worker]) -> None:
    with start() as engine:
        for _ in range(3):
            engine.pause()
            assert state(engine.pid) == "T"
            engine.resume()
            assert engine.info()["runtime"] == "fake"


def test_closed_while_paused(start: Callable[..., Worker], is_gone: Callable[[int], bool], memory: Path) -> None:
    engine = start()
    assert len(list(memory.iterdir())) == 1
    engine.pause()
    engine.close()
    engine.close()
    assert engine._process.returncode == 0  # it was asked, and ended by itself
    assert not list(memory.iterdir())


def test_killed_while_paused(start: Callable[..., Worker]) -> None:
    with start() as engine:
        engine.pause()
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match=r"SIGKILL[\s\S]*memory"):
            engine.info()


def test_closed_though_it_will_not_end(start: Callable[..., Worker], is_gone: Callable[[int], bool]) -> None:
    stubborn = "import atexit; atexit.register(time.sleep, 1000); signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    engine = start(Timeouts(close=0.3), top=stubborn)
    engine.close()
    assert is_gone(engine.pid)


def test_interrupted_while_waiting(start: Callable[..., Worker], is_gone: Callable[[int], bool]) -> None:
    engine = start(run="os.kill(os.getppid(), signal.SIGINT); time.sleep(1000)")
    with pytest.raises(KeyboardInterrupt):
        engine.run(X)
    with pytest.raises(EngineDied, match="was interrupted"):
        engine.info()
    engine.close()
    assert is_gone(engine.pid)


def test_forgotten(start: Callable[..., Worker], is_gone: Callable[[int], bool], memory: Path) -> None:
    engine = start()
    pid = engine.pid
    del engine
    gc.collect()
    assert is_gone(pid)
    assert not list(memory.iterdir())


def test_slow_runs_are_given_time(start: Callable[..., Worker]) -> None:
    # 4 runs of 0.3 s are longer than `run`, and still no hang.
    with start(Timeouts(run=0.8), once="time.sleep(0.3)") as engine:
        assert engine.time(X, 4).nanoseconds.shape == (4,)
        assert engine.time(X, 4).nanoseconds.shape == (4,)


@pytest.mark.parametrize("ending", ["sys.exit()", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.parametrize("paused", [True, False])
def test_does_not_outlive_its_parent(
    make_target: Make, is_gone: Callable[[int], bool], killed: list[int], tmp_path: Path, ending: str, paused: bool
) -> None:
    target = make_target()
    script = f"""
        import os, pickle, signal, sys
        from pathlib import Path
        from acdc_export.engines import Environment, open_engine
        target = pickle.loads({pickle.dumps(target)!r})
        here = Environment(Path(sys.executable), {{}}, Path())
        engine = open_engine(target, here, Path("m.onnx"), batch_size=1, threads=1)
        if {paused}:
            engine.pause()
        print(engine.pid, engine._folder, flush=True)
        {ending}
    """
    # Not captured by a pipe: the end of one would be waited for as long as the worker lives.
    output = tmp_path / "output"
    with output.open("w") as file:
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], stdout=file, stderr=file, check=False)
    pid, folder = output.read_text().split()[:2]
    killed.append(int(pid))
    assert is_gone(int(pid))
    # A parent that was killed could not clean up: the next worker anywhere does, once it is sure.
    if Path(folder).exists():
        assert "SIGKILL" in ending
        worker._sweep(Path(folder).parent)
        assert Path(folder).exists()
        os.utime(folder, (time.time() - 100, time.time() - 100))
        worker._sweep(Path(folder).parent)
    assert not Path(folder).exists()


def test_the_folder_of_a_living_worker_is_not_swept(start: Callable[..., Worker]) -> None:
    with start() as engine:
        os.utime(engine._folder, (0, 0))
        worker._sweep(engine._folder.parent)
        assert engine.run(X)


@pytest.mark.parametrize(("name", "value"), [("_MEMORY", Path("/no/such/folder")), ("_ROOM", 2**62)])
def test_arrays_go_to_disk_where_memory_is_short(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: Any
) -> None:
    monkeypatch.setattr(worker, name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with start() as engine:
        assert engine._folder.parent == tmp_path
        np.testing.assert_array_equal(engine.run(X)["x/out"], 2 * X["x"])


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
