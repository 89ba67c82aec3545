"""The CPU quota of a container, as the kernel's files tell it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from acdc_export import machine


def files(root: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "12:cpuset:/\n4:cpu,cpuacct:{}\n0::/\n"


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        # The tightest of a group and those above it, here a pod's.
        (
            {
                "proc/self/cgroup": "0::/pod/job\n",
                "sys/fs/cgroup/pod/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        # The host's path, and the container's files at the top.
        (
            {
                "proc/self/cgroup": V1.format("/docker/0123"),
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": V1.format("/job"),
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            0.25,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what is this\n"}, None),
        ({"proc/self/cgroup": "broken\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
    ],
)
def test_the_quota_that_the_kernels_files_tell(tmp_path: Path, content: dict[str, str], quota: float | None) -> None:
    assert machine.cpu_quota(files(tmp_path, content)) == quota


@pytest.mark.parametrize("quota", [0.25, 1.0, 1.5, 2.0, 3.9, 1000.0, None])
def test_whole_cores_of_the_quota_are_used(monkeypatch: pytest.MonkeyPatch, quota: float | None) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine, "physical_cpus", lambda: [0, 2, 4, 6])
    used = len(machine.describe().cpus)
    assert used == (4 if quota is None else min(4, max(1, math.floor(quota))))
    notes = machine.quota_notes(used)
    assert bool(notes) == (quota is not None and quota < 4)
    if quota == 1.5:
        assert notes == ["A CPU quota of 1.5 CPUs holds here: 1 of 4 physical cores were used."]
        (note,) = machine.quota_notes(len(machine.describe(3).cpus))  # what is asked for is done, and said
        assert "1.5 CPUs is less than the 3 threads" in note
