"""Notes on an unsteady machine, and how its unsteadiness is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acdc_export import machine
from acdc_export.errors import EngineDied
from acdc_export.evidence import steadiness
from acdc_export.evidence.contention import Contention
from acdc_export.evidence.steadiness import Steadiness, Watch
from acdc_export.machine import CoreTimes

from .fakes import Fake

NONE = Contention(disturbed=0.2, left_out=True)  # no more than is worth a word
STEADY = Steadiness(
    drift=1.25, steal=0.01, others=0.1, timer=100.0, jumps=0, contention=NONE
)  # none beyond its threshold
P50 = 0.01  # milliseconds, a hundred readings of the clock


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"drift": 1.26}, "milliseconds drifted: the slowest launch took 1.26x as long as the fastest."),
        ({"steal": 0.014}, "the hypervisor took 1.4 % of the cores' time (steal)."),
        ({"others": 0.35}, "other processes kept 0.35 of the cores measured on busy."),
        ({"timer": 101.0}, "the clock is coarse: a reading takes 101 ns, a run 10000 ns."),
        ({"jumps": 2}, "the clock jumped in 2 of the launches, which were left out."),
        (
            {"contention": Contention(0.214, left_out=True)},
            "others took processor time in 21 % of the rounds, which were left out.",
        ),
        (
            {"contention": Contention(0.1, left_out=True, launches=2)},
            "others took processor time in 10 % of the rounds, which were left out, 2 whole launches among them.",
        ),
        (
            {"contention": Contention(0.9, left_out=False)},
            "others took processor time in 90 % of the rounds, too many to leave them out.",
        ),
        (
            {"contention": Contention(0.1, left_out=False, uneven="new")},
            "'new' lost processor time far more often than what it took turns with. It may have done so to itself, so "
            "no rounds were left out.",
        ),
    ],
)
def test_a_note_says_how_much_it_was(change: dict[str, Any], note: str) -> None:
    assert STEADY.notes(P50) == []
    assert replace(STEADY, **change).notes(P50) == [note]


def test_what_the_system_does_not_tell_is_no_note() -> None:
    assert replace(STEADY, steal=None, others=None).notes(P50) == []
    assert replace(STEADY, timer=1e9).notes(0.0) == []  # nothing was measured


class Cores:
    """Stands in for the system's cores; the test says what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.own = 1000.0, 50.0
        self.times: CoreTimes | None = CoreTimes(300.0, 7.0)
        monkeypatch.setattr(machine, "core_times", lambda cpus: self.times)
        monkeypatch.setattr(steadiness, "perf_counter", lambda: self.now)
        monkeypatch.setattr(steadiness, "process_time", lambda: self.own)

    def spend(self, seconds: float, busy: float, stolen: float = 0.0, own: float = 0.0) -> None:
        assert self.times is not None
        self.now, self.own = self.now + seconds, self.own + own
        self.times = CoreTimes(self.times.busy + busy, self.times.stolen + stolen)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    return Cores(monkeypatch)


def test_what_the_engines_and_this_process_do_not_take_is_taken_by_others(cores: Cores) -> None:
    watch, engines = Watch([0, 1]), [Fake(), Fake()]
    for _ in range(2):
        cores.spend(seconds=100.0, busy=77.0)  # before the watch: loading and warming up
        engines[0].busy += 40.0
        with watch.over(engines):
            cores.spend(seconds=10.0, busy=12.0, stolen=0.5, own=1.0)
            engines[0].busy += 6.0
            engines[1].busy += 3.0
    measured = watch.steadiness([1.0], jumps=3, contention=NONE)
    assert measured.others == pytest.approx((12 - 1 - 6 - 3) / 10)
    assert measured.steal == pytest.approx(0.5 / (2 * 10))
    assert measured.jumps == 3


def test_less_than_nothing_is_not_taken_by_others(cores: Cores) -> None:
    """The system counts in ticks, and this process may run on other cores."""
    watch = Watch([0])
    with watch.over([]):
        cores.spend(seconds=1.0, busy=0.5, own=0.6)
    assert watch.steadiness([1.0], jumps=0, contention=NONE).others == 0


def test_a_launch_that_broke_off_is_not_counted(cores: Cores) -> None:
    watch = Watch([0])
    with pytest.raises(EngineDied), watch.over([]):
        cores.spend(seconds=1.0, busy=1.0)
        raise EngineDied("dead", "bury it")
    assert watch.steadiness([], jumps=0, contention=NONE).others is None


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_system_that_does_not_tell_once_is_not_believed(cores: Cores, when: str) -> None:
    watch = Watch([0])
    with watch.over([]):
        cores.spend(seconds=1.0, busy=1.0)
    times, cores.times = cores.times, None if when == "before" else cores.times
    with watch.over([]):
        cores.times = None if when == "after" else times
    measured = watch.steadiness([1.0], jumps=0, contention=NONE)
    assert (measured.steal, measured.others) == (None, None)


def test_without_cores_to_watch_nothing_is_said_of_them(cores: Cores) -> None:
    watch = Watch([])
    with watch.over([]):
        cores.spend(seconds=1.0, busy=1.0)
    measured = watch.steadiness([1.0], jumps=0, contention=NONE)
    assert (measured.steal, measured.others) == (None, None)


def test_drift_is_between_launches_and_the_slowest_timer_counts() -> None:
    watch = Watch([])
    for nanoseconds in (20.0, 70.0, 30.0):
        watch.timer(nanoseconds)
    assert watch.steadiness([2.0, 1.0, 1.5], 0, NONE) == Steadiness(2.0, None, None, 70.0, 0, NONE)
    assert watch.steadiness([], jumps=0, contention=NONE).drift == 1.0


STAT = """cpu  9 9 9 9 9 9 9 9 9 9
cpu0 100 20 30 4000 500 6 7 80 50 20
cpu1 1 2 3 4 5 6 7 8 0 0
cpu11 1000 0 0 0 0 0 0 0 0 0
intr 2021062 0 0
"""


def stat(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read(path: Path, encoding: str) -> str:
        assert path == Path("/proc/stat")
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(machine.Path, "read_text", read)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)


def test_cores_are_busy_unless_they_idle_wait_or_are_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    stat(monkeypatch, STAT)
    assert machine.core_times([0]) == CoreTimes(1.63, 0.8)
    assert machine.core_times([1, 0]) == CoreTimes(pytest.approx(1.82), pytest.approx(0.88))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [(None, [0]), (STAT, [0, 2]), (STAT, []), ("cpu0 1 2 3 4\n", [0])],
    ids=["no such file", "an unknown core", "no cores", "an old kernel's columns"],
)
def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, text: str | None, cpus: list[int]) -> None:
    stat(monkeypatch, text)
    assert machine.core_times(cpus) is None


def test_this_system_knows_no_millionth_core() -> None:
    assert machine.core_times([10**6]) is None
