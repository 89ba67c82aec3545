"""The machine at hand: what is reported of it, and which of its cores are used."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError


@dataclass(frozen=True)
class Machine:
    """What a measurement was taken on. `memory` in bytes; `cpus` are the logical ones that workers are pinned to."""

    processor: str
    cpus: tuple[int, ...]
    memory: int
    system: str


def describe(threads: int | None = None) -> Machine:
    """This machine, with `threads` of its physical cores (all that this process may use, by default).

    Raises:
        UsageError: there are not that many.
    """
    cores = physical_cpus()
    if threads is not None and not 1 <= threads <= len(cores):
        raise UsageError(
            f"--threads {threads}: this machine has {len(cores)} physical cores to use.",
            f"Give a number from 1 to {len(cores)}, or leave it out for all of them.",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(_processor(), tuple(cores[:threads]), memory, f"{platform.system()} {platform.release()}")


def physical_cpus() -> list[int]:
    """One logical CPU of each physical core that this process may run on, sorted.

    Two threads of one core share its arithmetic units, so that a second one slows the first down.
    """
    allowed = os.sched_getaffinity(0)
    cores: dict[str, int] = {}
    for cpu in sorted(allowed):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.is_file() else str(cpu)
        cores.setdefault(core, cpu)
    return sorted(cores.values())


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines: Iterable[str] = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
