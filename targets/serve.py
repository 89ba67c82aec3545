"""The worker: one model in one runtime, served to acdc-export over standard input and output.

    python serve.py ENGINE_FOLDER [FOLDER...]

runs in the target's own interpreter and takes nothing but Python 3.8, the standard library and numpy. The
runtime itself is only known to `engine.py` in ENGINE_FOLDER, which can import what is in the other folders too.
docs/engine-protocol.md describes both sides.
"""

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
import time
from pathlib import Path

PROTOCOL = 6
CALLS = ("hello", "load", "can_build", "build", "info", "run", "time", "profile", "timer", "memory", "close")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CPUCLOCK_OF_THREAD = 6  # linux/posix-timers.h: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED
READINGS = 4000  # of the clock at a time, for `timer`: under a millisecond


def main(folder, *others):
    """Answer requests, one JSON object a line, until `close` or the end of standard input."""
    die_with_parent()
    sys.path[:0] = [other for other in others if other not in sys.path]
    requests, replies = take_over_pipes()
    served = Served(Path(folder))
    for line in requests:
        request = json.loads(line)
        call = request.pop("call")
        try:
            reply = json.dumps({"result": served.answer(call, request)})
        except Exception as error:  # whatever a runtime throws is an answer, not the end
            reply = json.dumps({"error": described(error)})
        replies.write(reply + "\n")
        replies.flush()
        if call == "close":
            return


def die_with_parent():
    """Have the kernel kill this process with its parent. One that is paused could not see its input end."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died in between; had it died earlier, the input would be at its end
        sys.exit(1)


def take_over_pipes():
    """The pipes to the parent, under descriptors that no runtime knows of.

    What native code prints (a banner, a warning) goes to descriptor 1, which from now on is the log.
    """
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def described(error):
    """An exception as the protocol has it: the name of its type, its message in one line, and its remedy, if any."""
    told = {"type": type(error).__name__, "message": in_one_line(error)}
    if isinstance(getattr(error, "remedy", None), str):
        told.update(message=in_one_line(getattr(error, "message", error)), remedy=in_one_line(error.remedy))
    return told


def in_one_line(text):
    return " ".join(str(text).split())[:2000]


class Served:
    """The calls of the protocol, one method each; keyword arguments are the request's other keys."""

    def __init__(self, folder):
        self.folder = folder
        self.model = None

    def answer(self, call, arguments):
        if call not in CALLS:
            raise ValueError(f"unknown call {call!r}")
        return getattr(self, call)(**arguments)

    def hello(self):
        return {"protocol": PROTOCOL, "python": platform.python_version()}

    def load(self, model, batch_size, threads, cpus, precision):
        settle(threads, cpus)
        gc.disable()  # importing a runtime makes nothing but what stays; looking for garbage takes a tenth of it
        self.model = import_engine(self.folder).load(model, batch_size, threads, precision)
        # What was imported stays. Collecting it anew before every block of runs would take longer than the runs.
        gc.collect()
        gc.freeze()
        gc.enable()

    def can_build(self, precision):
        engine = import_engine(self.folder)
        if hasattr(engine, "can_build"):
            engine.can_build(precision)

    def build(self, model, stem, precision, batch_sizes, threads, cpus, inputs):
        settle(threads, cpus)
        engine = import_engine(self.folder)
        if not hasattr(engine, "build"):
            raise NotImplementedError("it has no `build`")
        batches = Batches(inputs, batch_sizes[0]) if inputs else None
        path = engine.build(model, stem, precision, batch_sizes, batches)
        told = {name: getattr(engine, name)(path) for name in ("weights", "deployed") if hasattr(engine, name)}
        return {"path": path, "weights": told.get("weights"), "deployed": told.get("deployed")}

    def info(self):
        return self.model.info()

    def run(self, inputs, folder):
        import numpy as np

        outputs = self.model.run(read(inputs))
        files = {}
        for name, array in outputs.items():
            files[name] = str(Path(folder) / f"out{len(files)}.npy")
            np.save(files[name], array, allow_pickle=False)
        return files

    def time(self, inputs, repeats):
        arrays = read(inputs)
        once = self.model.bind(arrays)
        take = getattr(self.model, "time", by_processor_clock)  # a device has a clock of its own
        gc.collect()
        gc.disable()
        try:
            preempted, before = preemptions(), processor()
            nanoseconds = take(once, repeats)
            spent = processor() - before
        finally:
            gc.enable()
        return {"nanoseconds": nanoseconds, "processor": spent, "preempted": preemptions() - preempted}

    def profile(self, inputs, repeats):
        if not hasattr(self.model, "profile"):
            return None
        return self.model.profile(read(inputs), repeats)

    def timer(self):
        clock = time.perf_counter_ns
        steps = []
        while not steps:  # a coarse clock may stand still for all of the readings
            readings = [clock() for _ in range(READINGS)]
            steps = [later - earlier for earlier, later in zip(readings, readings[1:]) if later > earlier]
        return sorted(steps)[len(steps) // 2]

    def memory(self):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # the kernel says kB and means KiB
        raise OSError("/proc/self/status has no VmHWM")

    def close(self):
        return None


def by_processor_clock(once, repeats):
    """Nanoseconds of each of so many calls of `once`."""
    clock = time.perf_counter_ns
    nanoseconds = [0] * repeats
    for index in range(repeats):
        start = clock()
        once()
        nanoseconds[index] = clock() - start
    return nanoseconds


class Batches:
    """Samples in files by name as arrays by name, so many at a time; read anew each time that they are gone through."""

    def __init__(self, inputs, size):
        import numpy as np

        self.arrays = {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in inputs.items()}
        self.size = size

    def __len__(self):
        return min(len(array) for array in self.arrays.values()) // self.size

    def __iter__(self):
        import numpy as np

        for start in range(0, len(self) * self.size, self.size):
            yield {name: np.array(array[start : start + self.size]) for name, array in self.arrays.items()}


def settle(threads, cpus):
    """Take so many threads and these cores, which can't be changed once numpy or a runtime is imported.

    Pools of threads are made at import, and keep the cores and the count that they find then. So this comes first,
    and nothing above imports either.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


def processor():
    """Nanoseconds of processor time that the threads of this process have had so far.

    Of each by its own clock (clock_gettime(2)): the clock of the process counts those that run at this moment up to
    their last tick only, which may be ten milliseconds ago.
    """
    total = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended just now
            total += time.clock_gettime_ns((~int(thread.name) << 3) | CPUCLOCK_OF_THREAD)
    return total


def preemptions():
    """How often a thread of this process had to leave its core to another process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def import_engine(folder):
    """Import `engine.py`, and with it the runtime. Raises `ImportError`, whatever went wrong."""
    sys.path.append(str(folder))  # last, so that nothing beside engine.py hides a package
    spec = importlib.util.spec_from_file_location("engine", str(folder / "engine.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error
    return module


def read(inputs):
    """Arrays by name, from files by name."""
    import numpy as np

    return {name: np.load(file, allow_pickle=False) for name, file in inputs.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
