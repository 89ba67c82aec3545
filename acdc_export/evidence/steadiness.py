"""How steady the machine was during a measurement, in numbers that a reader can act on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

from .. import machine
from .contention import Contention
from .engine import Engine

DRIFT, STEAL, OTHERS, TIMER, DISTURBED = 1.25, 0.01, 0.1, 0.01, 0.2
"""Beyond these a note is worth its line.

They are: p50 of the slowest launch over the fastest, share of time stolen, cores, share of a run, share of the rounds.
"""


@dataclass(frozen=True)
class Steadiness:
    """What the machine did beside the measurement. A value is None where the system doesn't tell."""

    drift: float  # p50 of the first variant's slowest launch over that of its fastest
    steal: float | None  # share of the cores' time that the hypervisor gave to others
    others: float | None  # cores' worth of time that other processes took on the cores measured on
    timer: float  # nanoseconds from one reading of the workers' clock to the next
    jumps: int  # launches that were left out, since the clock jumped in them
    contention: Contention  # rounds in which another process had a part of the cores

    def notes(self, p50: float) -> list[str]:
        """What was unsteady, a line each; `p50` is the fastest variant's, in milliseconds."""
        notes = []
        if self.drift > DRIFT:
            notes.append(f"milliseconds drifted: the slowest launch took {self.drift:.2f}x as long as the fastest.")
        if self.steal is not None and self.steal > STEAL:
            notes.append(f"the hypervisor took {100 * self.steal:.1f} % of the cores' time (steal).")
        if self.others is not None and self.others > OTHERS:
            notes.append(f"other processes kept {self.others:.2f} of the cores measured on busy.")
        if p50 and self.timer > TIMER * p50 * 1e6:
            notes.append(f"the clock is coarse: a reading takes {self.timer:.0f} ns, a run {1e6 * p50:.0f} ns.")
        if self.jumps:
            notes.append(f"the clock jumped in {self.jumps} of the launches, which were left out.")
        if self.contention.uneven:
            notes.append(
                f"'{self.contention.uneven}' lost processor time far more often than what it took turns with. It may "
                "have done so to itself, so no rounds were left out."
            )
        elif self.contention.disturbed > DISTURBED or self.contention.launches:
            launches = f", {self.contention.launches} whole launches among them" if self.contention.launches else ""
            outcome = f"which were left out{launches}" if self.contention.left_out else "too many to leave them out"
            notes.append(
                f"others took processor time in {100 * self.contention.disturbed:.0f} % of the rounds, {outcome}."
            )
        return notes


class Watch:
    """Watches the cores while engines alternate on them, launch after launch."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = cpus
        self._timer = self._stolen = self._busy = self._own = self._seconds = 0.0
        self._available = bool(cpus)  # whether the system tells

    def timer(self, nanoseconds: float) -> None:
        """Note how far apart two readings of a worker's clock are."""
        self._timer = max(self._timer, nanoseconds)

    @contextmanager
    def over(self, engines: Iterable[Engine]) -> Iterator[None]:
        """Watch while the block runs. The block and `engines` account for their own time; others took the rest."""
        engines = list(engines)
        before, own = machine.core_times(self._cpus), _cpu_seconds(engines)
        start = perf_counter()
        yield
        after = machine.core_times(self._cpus)
        if before is None or after is None:
            self._available = False
            return
        self._own += _cpu_seconds(engines) - own
        self._busy += after.busy - before.busy
        self._stolen += after.stolen - before.stolen
        self._seconds += perf_counter() - start

    def steadiness(self, medians: Sequence[float], jumps: int, contention: Contention) -> Steadiness:
        """The steadiness so far; `medians` are the first variant's, one a launch, in any unit."""
        available = self._available and self._seconds > 0
        return Steadiness(
            drift=max(medians) / min(medians) if medians else 1.0,
            steal=self._stolen / (self._seconds * len(self._cpus)) if available else None,
            others=max(0.0, self._busy - self._own) / self._seconds if available else None,
            timer=self._timer,
            jumps=jumps,
            contention=contention,
        )


def _cpu_seconds(engines: Iterable[Engine]) -> float:
    """Processor seconds that the engines and this process have used so far."""
    return process_time() + sum(engine.cpu_seconds() for engine in engines)
