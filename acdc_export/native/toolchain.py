"""Stage 7: from C to a shared library, with the compiler that is there.

`cc`, or what the variable CC names, is taken first; `ziglang` from PyPI where there is none. The library needs libc
only, and holds the kernels for every instruction set that was asked for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from ..errors import RuntimeUnavailable
from .plan import INSTRUCTION_SETS

_FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread",
    "-ffp-contract=off",  # what uint8 becomes is defined operation by operation
    "-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition",
)  # fmt: skip
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_MACHINE = {
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512": _AVX512,
    "avx2_vnni": (*_AVX2, "-mavxvnni"),
    "avx2": _AVX2,
}
_TIMEOUT = 600.0  # seconds; a compiler that takes longer hangs


class CompilerMissing(RuntimeUnavailable):
    """There is no C compiler."""


def compiler() -> list[str]:
    """The command of a C compiler.

    Raises:
        CompilerMissing: there is none.
    """
    named = os.environ.get("CC")
    if named:
        command = shlex.split(named)
        if not command or shutil.which(command[0]) is None:
            raise CompilerMissing(f"The C compiler that the variable CC names is not there: {named}", "Unset CC, or install it.")
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


def build(program: Path, library: Path, instruction_sets: Sequence[str], objects: Path, extra: Sequence[str] = ()) -> None:
    """Compile `program` (a C file; what it includes lies beside it) to `library`. `objects`: a folder for object files.

    Raises:
        CompilerMissing: there is no compiler.
        RuntimeUnavailable: it failed.
    """
    command = compiler()
    jobs = [("common", ())]
    jobs += [(name, (f"-DSET={INSTRUCTION_SETS.index(name)}", *_MACHINE[name])) for name in instruction_sets]

    def compile_one(job: tuple[str, tuple[str, ...]]) -> str:
        name, flags = job
        target = f"{name}.o"
        _run([*command, *_FLAGS, *extra, *flags, "-c", str(program.resolve()), "-o", str(objects.resolve() / target)], program.parent)
        return str(objects.resolve() / target)

    with ThreadPoolExecutor(max_workers=os.process_cpu_count() if sys.version_info >= (3, 13) else len(os.sched_getaffinity(0))) as pool:
        files = list(pool.map(compile_one, jobs))
    _run(
        [*command, "-shared", "-pthread", *extra, "-Wl,-z,noexecstack", "-Wl,--build-id=none", *files, "-o", str(library.resolve())],
        program.parent,
    )


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(f"The C compiler did not end within {_TIMEOUT:.0f} s.", "Try another: CC=clang.") from error
    except OSError as error:
        raise CompilerMissing(f"{command[0]} can't be started: {error}.", "Install gcc, or pip install ziglang.") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line.lower()]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise RuntimeUnavailable(
            f"The C compiler {command[0]} failed: {reason}",
            "It has to know GNU C11 and x86 intrinsics: gcc 11, clang 14, or ziglang.",
        )


