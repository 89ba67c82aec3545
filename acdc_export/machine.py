"""The machine at hand: its description in reports, and the cores that are used."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement. `memory` is in bytes; workers are pinned to the logical CPUs `cpus`."""

    processor: str
    cpus: tuple[int, ...]
    memory: int
    system: str


def describe(threads: int | None = None) -> Machine:
    """Describe this machine with `threads` of its physical cores; by default with all that this process may use.

    Raises:
        UsageError: this process may not use that many.
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
    """Return one logical CPU of each physical core that this process may run on, sorted.

    Two threads of one core share its arithmetic units, so a second thread slows the first down.
    """
    allowed = os.sched_getaffinity(0)
    cores: dict[str, int] = {}
    for cpu in sorted(allowed):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.is_file() else str(cpu)
        cores.setdefault(core, cpu)
    return sorted(cores.values())


def saturates() -> bool:
    """Whether this is an x86 processor without VNNI, on which INT8 arithmetic saturates.

    Such a processor adds pairs of products of uint8 and int8 in 16 bits. They saturate unless one factor has 7 bits.
    """
    if platform.machine() != "x86_64":
        return False
    return not {"avx512_vnni", "avx_vnni"} & set(_cpuinfo().split())


def _processor() -> str:
    names = (line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cpuinfo() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.is_file() else ""


@dataclass(frozen=True)
class CoreTimes:
    """Seconds since the system's start that a set of cores spent on processes, and that the hypervisor took from it."""

    busy: float
    stolen: float


def core_times(cpus: Sequence[int]) -> CoreTimes | None:
    """Return the times of these logical CPUs so far (`/proc/stat`), or None where the system doesn't tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [[int(value) for value in line.split()[1:]] for line in lines if line.partition(" ")[0] in names]
    if not rows or len(rows) != len(names) or not all(len(row) >= 8 and any(row) for row in rows):
        return None  # some sandboxes have zeros there
    # proc_stat(5): user nice system idle iowait irq softirq steal. The first two already hold the guests' time.
    busy = sum(row[0] + row[1] + row[2] + row[5] + row[6] for row in rows)
    return CoreTimes(busy / ticks, sum(row[7] for row in rows) / ticks)
