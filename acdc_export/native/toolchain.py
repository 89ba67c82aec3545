"""Stage 7: from C to a shared library, with the compiler that is there.

`cc`, or what the variable CC names, is taken first; `ziglang` from PyPI where there is none. The library needs libc
only, and holds the kernels for every instruction set that was asked for. Kernels are the same for all networks, so each
set of them is compiled once in a process, however many libraries are built: tuning alone builds two.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from ..errors import RuntimeUnavailable
from .emit import Source
from .plan import INSTRUCTION_SETS

FLAGS = (
    "-std=gnu11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread",
    "-ffp-contract=off",  # what uint8 becomes is defined operation by operation
    "-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition",
)  # fmt: skip
_LINK = ("-shared", "-pthread", "-Wl,-z,noexecstack", "-Wl,--build-id=none")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
MACHINE: dict[str, tuple[str, ...]] = {  # flags of the kernels of an instruction set
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512": _AVX512,
    "avx2_vnni": (*_AVX2, "-mavxvnni"),
    "avx2": _AVX2,
}
_TIMEOUT = 600.0  # seconds; a compiler that takes longer hangs

compiled_kernels: MutableMapping[str, bytes] = {}
"""Objects of kernels that this process compiled, by a hash of all that they depend on."""


class CompilerMissing(RuntimeUnavailable):
    """There is no C compiler."""


def compiler() -> list[str]:
    """The command of a C compiler.

    Raises:
        CompilerMissing: there is none.
    """
    named = os.environ.get("CC")
    if named:
        try:
            command = shlex.split(named)
        except ValueError:  # a quote that isn't closed
            command = []
        if not command or shutil.which(command[0]) is None:
            raise CompilerMissing(f"The variable CC names a C compiler that is not there: {named}.", "Unset CC.")
        return command
    for name in ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return [path]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CompilerMissing(
        "There is no C compiler: neither cc nor ziglang.",
        "Install one: apt install gcc, or pip install ziglang.",
    )


def build(source: Source, folder: Path, instruction_sets: Sequence[str], extra: Sequence[str] = ()) -> Path:
    """Write `source` into a folder and compile it there to STEM.so, whose path is returned.

    Raises:
        CompilerMissing: there is no compiler.
        RuntimeUnavailable: it failed.
    """
    command, folder = [*compiler(), *FLAGS, *extra], folder.resolve()
    program, library = source.write(folder), folder / f"{source.stem}.so"
    kernels = folder / "kernels.c"  # a name that is the same for all networks: it gets into the object
    kernels.write_text(source.kernels, encoding="utf-8")

    def kernel_object(name: str) -> Path:
        path = folder / f"{name}.o"
        job = [*command, f"-DSET={INSTRUCTION_SETS.index(name)}", *MACHINE[name], "-c", f"./{kernels.name}"]
        key = hashlib.sha256("\0".join([*job, source.kernels]).encode()).hexdigest()
        if (content := compiled_kernels.get(key)) is None:
            _run([*job, "-o", path.name], folder)
            compiled_kernels[key] = path.read_bytes()
        else:
            path.write_bytes(content)
        return path

    def common_object() -> Path:
        path = folder / "common.o"
        _run([*command, "-c", f"./{program.name}", "-o", path.name], folder)
        return path

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(common_object), *(pool.submit(kernel_object, name) for name in instruction_sets)]
        objects = [job.result() for job in jobs]
    _run([*command, *_LINK, *(path.name for path in objects), "-o", f"./{library.name}"], folder)
    return library


def _run(command: Sequence[str], folder: Path) -> None:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(f"The C compiler {name} took more than {_TIMEOUT:.0f} s.", "Set CC=clang.") from error
    except OSError as error:
        reason = f"The C compiler {name} can't be started: {error.strerror or error}."
        raise CompilerMissing(reason, "Install another: apt install gcc, or pip install ziglang.") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line.lower()]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise RuntimeUnavailable(
            f"The C compiler {name} failed: {reason}",
            "It has to know GNU C11 and x86 intrinsics: gcc 11, clang 14, or ziglang.",
        )
