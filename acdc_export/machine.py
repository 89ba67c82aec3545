"""The machine at hand: its description in reports, and the cores that are used."""

from __future__ import annotations

import math
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
    """Describe this machine with `threads` of its physical cores.

    By default these are all that this process may use, but no more than its CPU quota has whole cores. More may be
    asked for; `quota_notes` tells what comes of it.

    Raises:
        UsageError: this process may not use that many.
    """
    cores = physical_cpus()
    if threads is not None and not 1 <= threads <= len(cores):
        raise UsageError(
            f"--threads {threads}: this machine has {len(cores)} physical cores to use.",
            f"Give a number from 1 to {len(cores)}, or leave it out for all of them.",
        )
    if threads is None and (quota := cpu_quota()) is not None:
        threads = max(1, min(len(cores), math.floor(quota)))
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
        core = siblings.read_text(encoding="utf-8").strip() if siblings.is_file() else str(cpu)
        cores.setdefault(core, cpu)
    return sorted(cores.values())


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the processor time that the kernel lets this process have, in CPUs, or None where there is no limit.

    It is the least of its control group and of those above it: `cpu.max` of version 2, `cpu.cfs_quota_us` and
    `cpu.cfs_period_us` of version 1 (cgroup-v2.rst, sched-bwc.rst of the kernel). `docker run --cpus` and Kubernetes'
    limits set them. In a container the group's path may be the host's, and the files lie at the mount's top.
    """
    mounts = root / "sys/fs/cgroup"
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        relative = Path(path.lstrip("/"))
        groups = [] if ".." in relative.parts else [relative, *relative.parents]
        read = _cfs_quota if controllers else _cpu_max
        for mount in (mounts / controllers, mounts / "cpu") if controllers else (mounts, mounts / "unified"):
            quotas += [quota for group in groups or [Path()] if (quota := read(mount / group)) is not None]
    return min(quotas, default=None)


def quota_notes(used: int) -> list[str]:
    """Say what a CPU quota means for a measurement with `used` threads; nothing where it is no limit to them."""
    quota, cores = cpu_quota(), len(physical_cpus())
    if quota is None or quota >= cores:
        return []
    if used > quota:
        return [
            f"The CPU quota of {quota:g} CPUs is less than the {used} thread{'s' if used > 1 else ''} measured with: "
            "the kernel stops them for a part of the time."
        ]
    return [f"A CPU quota of {quota:g} CPUs holds here: {used} of {cores} physical cores were used."]


def _cpu_max(group: Path) -> float | None:
    values = " ".join(_lines(group / "cpu.max")).split()
    return _ratio(values[0], values[1]) if len(values) == 2 else None


def _cfs_quota(group: Path) -> float | None:
    quota, period = (" ".join(_lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """CPUs, of two numbers of microseconds; None for "max", -1 and what is no number."""
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


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
    return cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""


@dataclass(frozen=True)
class CoreTimes:
    """Seconds since the system's start that a set of cores spent on processes, and that the hypervisor took from it."""

    busy: float
    stolen: float


def core_times(cpus: Sequence[int]) -> CoreTimes | None:
    """Return the times of these logical CPUs so far (`/proc/stat`), or None where the system doesn't tell."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
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
