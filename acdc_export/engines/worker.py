"""Run one model in one runtime in a process of its own. docs/engine-protocol.md describes the protocol."""

from __future__ import annotations

import fcntl
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .. import resources
from ..config import Target
from ..errors import EngineDied, EngineError, EngineTimeout, ModelRefused, RuntimeUnavailable, UsageError
from ..evidence.engine import Arrays, LayerTime, Turn
from ..files import output_errors
from ..printable import printable
from .environment import Environment

Zeros = dict[str, tuple[int, int]]
"""The number of zeros and of all elements, by the weight's name."""

PROTOCOL = 6
"""The version that `targets/serve.py` has to answer to `hello`."""

_MEMORY = Path("/dev/shm")
_ROOM = 512 * 2**20  # bytes; containers often have a /dev/shm of 64 MiB, and one batch of images fills that
_PREFIX = "acdc-export-"
_REMEDIES = {
    "SIGKILL": "It was killed from outside, most often because memory ran out: try a smaller batch size.",
    "SIGILL": "The runtime is built for other processors than this one: choose another target.",
}
_ELSEWHERE = "with TMPDIR"


@dataclass(frozen=True)
class Timeouts:
    """The time that a worker may take before it counts as hung, in seconds."""

    start: float = 60.0  # to say hello
    load: float = 300.0  # to import the runtime and load the model
    build: float = 1800.0  # to import it and build another form of the model
    run: float = 60.0  # for one run; `time` gets it once more for every repeat, or 20 times the slowest run so far
    short: float = 30.0  # for everything else
    close: float = 5.0  # to end by itself


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True)
class BuildAnswer:
    """What `engine.py` says of what it built."""

    path: str
    zeros: Zeros | None  # None if it doesn't count them
    deployed: list[str] | None  # the files that one ships; None for all of them


def open_engine(
    target: Target,
    environment: Environment,
    model: Path,
    *,
    batch_size: int,
    threads: int,
    cpus: Sequence[int] | None = None,
    precision: str = "fp32",
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    wait: bool = True,
) -> Worker:
    """Load `model` into the target's runtime, in a process of its own.

    Args:
        batch_size: the number of samples in each run.
        threads: the number of threads that the runtime may use.
        cpus: the cores that the process is pinned to; None leaves it to the system.
        precision: the precision that the runtime has to compute in.
        wait: whether to wait until the model is loaded. Otherwise the first call waits, and raises the errors of
            loading. So several engines can load at the same time.

    Raises:
        ModelRefused: the runtime does not take the model.
        RuntimeUnavailable: the interpreter does not start, or the runtime can't be imported in it.
        EngineDied, EngineTimeout: the runtime died or hung over the model.
        UsageError: this process may not use one of the cores.
    """
    if cpus is not None:
        check_cores(cpus)
    worker = Worker(target, environment, model, timeouts)
    try:
        worker._start(batch_size, threads, cpus, precision)
        if wait:
            worker.ready()
    except BaseException:
        worker.close()
        raise
    return worker


def check_cores(cpus: Sequence[int]) -> None:
    """Check that this process may use these cores.

    Raises:
        UsageError: `cpus` is empty, or this process may not use all of them.
    """
    if not (cpus and set(cpus) <= os.sched_getaffinity(0)):
        usable = sorted(os.sched_getaffinity(0))
        raise UsageError(f"Can't pin to the cores {list(cpus)}.", f"This process may use {usable}.")


class Worker:
    """An `evidence.engine.Engine`, and a context manager that closes it.

    `open_engine` opens a worker with a model. `building.build` opens one without a model, and only calls `build`.

    Its process is in a session of its own, where the terminal's Ctrl-C does not reach it. This process ends it: in
    `close`, at exit, or by dying. Use a worker only in the thread that opened it, and keep that thread alive: the
    kernel ends a worker together with the thread that started it.
    """

    def __init__(
        self, target: Target, environment: Environment, model: Path, timeouts: Timeouts, *, in_memory: bool = True
    ) -> None:
        """Start the process.

        `in_memory` says whether the worker's folder may be in memory. Where no time is measured, it need not be.
        """
        self._target, self._environment, self._model, self._timeouts = target, environment, model, timeouts
        self._received = b""
        self._loading = False
        self._pending = False  # a request without its answer: whatever comes next on the pipe is not for another call
        self._slowest = math.inf  # seconds of the slowest run so far
        self._folder, self._lock = _shared_folder(in_memory)
        with output_errors(Path(tempfile.gettempdir()), _ELSEWHERE):
            self._log = tempfile.TemporaryFile()  # noqa: SIM115, it stays open as long as the worker
        # -I keeps the user's Python setup out. -B keeps bytecode out of the folder of engine.py, which is hashed.
        serve = resources.root("targets") / "serve.py"
        command = [environment.python, "-I", "-B", serve, target.folder.absolute(), *environment.imports]
        try:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self._folder,
                env={**os.environ, "TMPDIR": str(self._folder), **target.runtime.variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except BaseException as error:
            _remove(self._folder, self._lock, self._log)
            if not isinstance(error, OSError):
                raise
            raise RuntimeUnavailable(
                f"{environment.python} does not start: {error.strerror}.",
                environment.repair,
            ) from error
        self._finalizer = weakref.finalize(
            self, _end, self._process, self._folder, self._lock, self._log, owner=os.getpid()
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The id of the runtime's process, and of its process group."""
        return self._process.pid

    def ready(self) -> None:
        if self._loading:
            self._loading = False
            self._answer("load", self._timeouts.load)

    def can_build(self, precision: str) -> None:
        """Let `engine.py` say whether it has what it takes to build. Raises what `_call` does."""
        self._check_protocol()
        self._call("can_build", self._timeouts.load, precision=precision)

    def build(
        self, stem: Path, *, precision: str, batch_sizes: Sequence[int], cpus: Sequence[int], inputs: Arrays
    ) -> BuildAnswer:
        """Let `engine.py` build a model.

        Raises what `_call` does, and `ModelRefused` for an answer of another form.
        """
        self._check_protocol()
        answer = self._call(
            "build",
            self._timeouts.build,
            model=str(self._model.absolute()),
            stem=str(stem.absolute()),
            precision=precision,
            batch_sizes=list(batch_sizes),
            threads=len(cpus),
            cpus=list(cpus),
            inputs=self._write(inputs),
        )
        try:
            zeros = _zeros(answer["weights"])
        except (AttributeError, TypeError, ValueError):
            raise self.refused("build", "its `weights` are no zeros and totals by name") from None
        deployed = answer["deployed"]
        if not (deployed is None or (isinstance(deployed, list) and all(isinstance(file, str) for file in deployed))):
            raise self.refused("build", "its `deployed` gives no list of paths")
        return BuildAnswer(str(answer["path"]), zeros, deployed)

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._call("info", self._timeouts.short)
        if not {"runtime", "version"} <= set(info):
            raise self.refused("info", "KeyError: it gives no 'runtime' and 'version'")
        return info

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        files = self._write(inputs)
        start = time.perf_counter()
        outputs = self._call("run", self._timeouts.run, inputs=files, folder=str(self._folder))
        self._note_run(time.perf_counter() - start)
        return {name: np.load(file, allow_pickle=False) for name, file in outputs.items()}

    def time(self, inputs: Arrays, repeats: int) -> Turn:
        limit = self._timeouts.run + repeats * min(self._timeouts.run, 20 * self._slowest)
        answer = self._call("time", limit, inputs=self._write(inputs), repeats=repeats)
        try:
            durations = np.array(answer["nanoseconds"], dtype=np.float64)  # by a clock of engine.py's own, perhaps
        except (TypeError, ValueError):
            raise self.refused("time", "its `time` gives no numbers") from None
        if durations.shape != (repeats,) or not np.isfinite(durations).all():
            raise self.refused("time", f"its `time` gives other than {repeats} numbers")
        nanoseconds = durations.astype(np.int64)
        self._note_run(float(nanoseconds.max(initial=0)) / 1e9)
        return Turn(nanoseconds, answer["processor"], answer["preempted"])

    def profile(self, inputs: Arrays, repeats: int) -> tuple[LayerTime, ...] | None:
        limit = self._timeouts.load + repeats * self._timeouts.run  # it may load the model anew, to be timed by layer
        rows = self._call("profile", limit, inputs=self._write(inputs), repeats=repeats)
        if rows is None:
            return None
        try:
            layers = [LayerTime(str(row["name"]), str(row["operator"]), float(row["seconds"])) for row in rows]
            if not all(0 <= layer.seconds < math.inf for layer in layers):
                raise ValueError
            return tuple(layers)
        except (KeyError, TypeError, ValueError):
            raise self.refused("profile", "its rows are no names, operators and seconds") from None

    def peak_memory(self) -> int:
        return int(self._call("memory", self._timeouts.short))

    def timer(self) -> float:
        return float(self._call("timer", self._timeouts.short))

    def cpu_seconds(self) -> float:
        self._check_open()
        self.ready()
        # The kernel tells, not the worker: it also tells of a paused one, and an answer would itself take time.
        if _has_ended(self._process):
            raise self._death("cpu_seconds")
        try:
            return _cpu_seconds(self.pid)
        except (FileNotFoundError, ProcessLookupError):  # it ended just now, in a program that ignores SIGCHLD
            raise self._death("cpu_seconds") from None

    def pause(self) -> None:
        self._signal("pause", signal.SIGSTOP)
        with suppress(ChildProcessError):
            # Wait until it has stopped. WNOWAIT leaves the state to whoever reaps the process.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal("resume", signal.SIGCONT)

    def close(self) -> None:
        try:
            if self._finalizer.alive and not self._pending:
                with suppress(EngineError):
                    self.resume()
                    self._call("close", self._timeouts.close)
                    _ends_within(self._process, self._timeouts.close)
        finally:
            self._finalizer()

    def _start(self, batch_size: int, threads: int, cpus: Sequence[int] | None, precision: str) -> None:
        self._check_protocol()
        self._send(
            "load",
            model=str(self._model.absolute()),
            batch_size=batch_size,
            threads=threads,
            cpus=None if cpus is None else list(cpus),
            precision=precision,
        )
        self._loading = True

    def _check_protocol(self) -> None:
        hello = self._call("hello", self._timeouts.start)
        if hello["protocol"] != PROTOCOL:
            raise EngineError(
                f"The worker speaks protocol {hello['protocol']}, and this is {PROTOCOL}.", "Reinstall acdc-export."
            )

    def _call(self, call: str, seconds: float, **arguments: Any) -> Any:
        """Send a call to the worker and return its result, which may take `seconds`.

        Raises:
            ModelRefused: the runtime answered with an error.
            RuntimeUnavailable: the runtime can't be imported.
            EngineDied, EngineTimeout: the worker died, or did not answer in time.
        """
        self._check_open()
        self.ready()
        self._send(call, **arguments)
        return self._answer(call, seconds)

    def _send(self, call: str, **arguments: Any) -> None:
        if _has_ended(self._process):
            raise self._death(call)
        if self._pending:
            raise EngineDied(f"{self._name} was interrupted, and can't go on.", "Open it again.")
        self._pending = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(call) from None

    def _answer(self, call: str, seconds: float) -> Any:
        answer = json.loads(self._line(call, seconds))
        self._pending = False
        if "error" in answer:
            raise self._error(call, answer["error"])
        return answer["result"]

    def _line(self, call: str, seconds: float) -> bytes:
        """Wait up to `seconds` for the next line that the worker writes."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                left = deadline - time.monotonic()
                # Look once a second: a child of the runtime may hold the pipe open when the runtime is gone.
                if selector.select(min(max(left, 0.0), 1.0)):
                    chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                    if not chunk:
                        raise self._death(call)
                    self._received += chunk
                elif _has_ended(self._process):
                    raise self._death(call)
                elif left <= 0:
                    _kill(self._process)
                    raise EngineTimeout(
                        f"{self._name} did not answer to `{call}` within {seconds:g} s; "
                        f"its last words: {self._last_words()}",
                        "It was ended. If the model is merely slow, try more threads or a smaller batch size.",
                    )
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _death(self, call: str) -> EngineDied:
        _ends_within(self._process, self._timeouts.close)
        cause = _cause(_kill(self._process))
        return EngineDied(
            f"{self._name} died in `{call}` ({cause}); its last words: {self._last_words()}",
            _REMEDIES.get(cause, "The crash is the runtime's own: try another batch size or another target."),
        )

    def _error(self, call: str, error: dict[str, str]) -> EngineError | RuntimeUnavailable:
        message, remedy = (printable(error.get(part, "")).strip() for part in ("message", "remedy"))
        if error["type"] == "Unavailable":
            return RuntimeUnavailable(f"{self._target.runtime.name}: {message}", remedy or self._environment.repair)
        if call in ("load", "can_build", "build") and error["type"] in ("ImportError", "ModuleNotFoundError"):
            return RuntimeUnavailable(
                f"{self._target.runtime.name} can't be imported: {message}",
                self._environment.repair,
            )
        return self.refused(call, f"{error['type']}: {message}", remedy)

    def refused(self, call: str, answer: str, remedy: str = "") -> ModelRefused:
        """The error for a call that the runtime refused with `answer`. Without its `remedy`, it says where to look."""
        if remedy:
            pass
        elif call == "load":
            toml = self._target.folder / "target.toml"
            remedy = f"[graph] in {toml} says which graphs the runtime takes, and which passes lead there."
        elif call in ("run", "time"):
            remedy = "Compare the names, shapes and dtypes of the inputs with the model's."
        else:
            remedy = f"`{call}` is answered by {self._target.folder / 'engine.py'}."
        return ModelRefused(f"{self._name} refused `{call}`: {answer}", remedy)

    @property
    def _name(self) -> str:
        return f"{self._target.runtime.name} with {self._model.name}"

    def _last_words(self) -> str:
        """The last line that the worker wrote to standard error."""
        end = os.fstat(self._log.fileno()).st_size
        # Read by position: the worker shares the offset of the file with us, and writes there.
        tail = os.pread(self._log.fileno(), 4096, max(0, end - 4096)).decode(errors="replace")
        lines = [line for raw in tail.splitlines() if (line := printable(raw).strip())]
        return lines[-1][-500:] if lines else "none."

    def _write(self, inputs: Arrays) -> dict[str, str]:
        """Write arrays where the worker reads them. Return the files by name."""
        files = {}
        with output_errors(self._folder, _ELSEWHERE):
            for index, (name, array) in enumerate(inputs.items()):
                files[name] = str(self._folder / f"in{index}.npy")
                np.save(files[name], np.asarray(array, order="C"), allow_pickle=False)
        return files

    def _note_run(self, seconds: float) -> None:
        self._slowest = seconds if math.isinf(self._slowest) else max(self._slowest, seconds)

    def _signal(self, call: str, number: signal.Signals) -> None:
        self._check_open()
        if _has_ended(self._process):
            raise self._death(call)
        os.killpg(self.pid, number)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise EngineDied(f"{self._name} was closed.", "Open it again.")


def _zeros(weights: Any) -> Zeros | None:
    return None if weights is None else {name: (int(zeros), int(total)) for name, (zeros, total) in weights.items()}


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended. This doesn't reap it: until then no other process can get its id."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the program that we are part of ignores SIGCHLD
        return True


def _cpu_seconds(pid: int) -> float:
    """Seconds of processor time of all threads of a process, ended ones included; the kernel counts in 10 ms."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    after_name = stat.rpartition(")")[2].split()
    utime, stime = after_name[11:13]
    return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait up to `seconds` for the end of the process. Return whether it has ended."""
    deadline = time.monotonic() + seconds
    while not (ended := _has_ended(process)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return ended


def _kill(process: subprocess.Popen[bytes]) -> int:
    """Kill the process group, reap the process, and return its exit code. SIGKILL reaches stopped processes too."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _cause(code: int) -> str:
    """Say how a process ended: "SIGSEGV", "exit status 1"."""
    if code >= 0:
        return f"exit status {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _shared_folder(in_memory: bool) -> tuple[Path, int]:
    """Make a folder for arrays, in memory if it may be and there is room. Return it and the descriptor of its lock.

    The lock tells others that its owner is alive. A process id would not: containers share a /dev/shm without sharing
    process ids.
    """
    usable = os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM
    parent = _MEMORY if in_memory and usable else Path(tempfile.gettempdir())
    _sweep(parent)
    with output_errors(parent, _ELSEWHERE):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    return folder, _locked(folder)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or in use
            if time.time() - folder.stat().st_mtime > 60:  # a younger folder may not have its lock yet
                _remove(folder, _locked(folder))


def _remove(folder: Path, lock: int, log: IO[bytes] | None = None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    if log is not None:
        log.close()


def _end(process: subprocess.Popen[bytes], folder: Path, lock: int, log: IO[bytes], owner: int) -> None:
    """Kill the process, and remove all that it leaves. A fork of the owner does nothing here."""
    if os.getpid() != owner:
        return
    _kill(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    _remove(folder, lock, log)
