"""Latency by paired alternation: ratios, since milliseconds drift while ratios stay.

Every variant (the sparse half, its twin, an older bundle's sparse half) is a process of its own. In each round the variants
take turns, in an order that is drawn anew for every other round and reversed in the next (B A C, C A B), so that no
variant keeps a better place than another; all but one are stopped, so that no spinning thread pool disturbs a neighbour.
A turn is as short as can be, one run of the slowest variant: the ratio of two variants within a round cancels only that part of
the machine's drift which is slower than a round. Turns of all variants take about as long.

Processes of the same model differ for as long as they live (pages, alignment, placement), which no number of rounds
averages out. So all variants are launched anew again and again, each launch gives one log ratio (the median over its
rounds), and the interval is over launches (`stats.ratio`).

Rounds in which another process had a part of the cores are left out (`contention`) of medians and of their ratios;
tails are of all rounds, since what is rare is all that they are made of.

The gates are looked at when stated shares of the budget are spent, and measuring ends early when they are decided.
Every look spends a part of the error that the run may make (`stats.spent`), so that looking more than once doesn't
make a wrong verdict likelier. docs/trust.md says how far this can be trusted, with figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..progress import Advance
from . import contention, stats, steadiness
from .engine import Arrays, Engine, Turn
from .gates import Measurement
from .steadiness import Steadiness

Open = Callable[[], Engine]
Clock = Callable[[], float]
Times = NDArray[np.int64]  # raw nanoseconds of every run, (runs,)
Samples = dict[str, NDArray[Any]]
"""Raw nanoseconds of every run by "VARIANT.LAUNCH"; of each turn, "processor.VARIANT.LAUNCH" and "preempted.VARIANT.LAUNCH" as in
`Turn`; and by "counted.LAUNCH" which rounds are undisturbed."""

_LONGEST_TURN = 0.1
"""Seconds that a fast variant's turn may take beside a slow one's."""

_FEWEST = 4
"""Rounds that a launch has; half of them have to be undisturbed."""

_ALIKE = 1.5
"""Variants whose runs are as long, but for this factor, get turns of as many."""

_LONG = 0.05
"""Seconds of a run from which on it hardly matters what is in the caches when it begins."""

TAIL_RUNS = 1000
"""Runs of an variant from which on its 99th percentile is told: ten beyond it at least."""


@dataclass(frozen=True)
class Plan:
    """How long to measure. Times in seconds."""

    budget: float = 30.0  # for everything: launching, warming up, alternating
    looks: tuple[float, ...] = (0.5, 0.75)  # shares of the budget after which gates may be decided; the end is one too
    fewest: int = 8  # launches before anything is decided early: of fewer, the end says more than an early look
    most: int = 1000  # launches
    launch: float = 1.0  # of alternation, each launch
    warmup: float = 0.1  # at least, each variant
    block: float = 0.005  # at least, each turn


@dataclass(frozen=True)
class Variant:
    """What one variant took, over all launches: milliseconds a batch, and the most memory in bytes.

    The median is of undisturbed rounds, the tail of all.
    """

    name: str
    runs: int
    p50: float
    p90: float
    p99: float | None  # None with fewer than `TAIL_RUNS` runs
    memory: int


@dataclass(frozen=True)
class Latency:
    """One batch size; `launches` and `rounds` are those that medians are of.

    `ratios` holds, for every variant but the first, its median latency over the first one's.

    `tails` holds the same of the 99th percentiles, where there are runs enough. Their intervals are at 1 - `alpha`.
    Where an engine died, `failure` says how, and there are no ratios: what was measured until then is no evidence.
    """

    batch_size: int
    threads: int  # of each variant
    variants: dict[str, Variant]
    ratios: dict[str, Measurement]
    tails: dict[str, Measurement]
    launches: int
    rounds: int
    seconds: float  # that it took
    looks: int
    alpha: float
    steadiness: Steadiness
    failure: str | None = None


@dataclass
class _Launch:
    """What one launch of all variants gave, so far: by variant, its turns."""

    turns: dict[str, list[Turn]]
    memory: dict[str, int] = field(default_factory=dict)
    jumped: bool = False  # the clock did
    cold: int = 0  # runs at the beginning of each turn that don't count

    @property
    def whole(self) -> bool:
        """Whether it went to its end, by a clock that can be believed."""
        return not self.jumped and len(self.memory) == len(self.turns)

    def times(self, name: str) -> list[Times]:
        """Nanoseconds of the runs of each turn of an variant."""
        return [turn.nanoseconds[self.cold :] for turn in self.turns[name]]

    def medians(self, name: str) -> NDArray[np.float64]:
        return np.array([np.median(times) for times in self.times(name)])

    def only(self, counted: NDArray[np.bool_]) -> _Launch:
        """The same launch without the rounds that don't count."""
        return replace(self, turns={name: list(compress(turns, counted)) for name, turns in self.turns.items()})


class _Looks:
    """Looks at what was found so far, at stated shares of the budget; each spends its part of the error."""

    def __init__(self, shares: Sequence[float], alpha: float) -> None:
        self._ahead, self._alpha, self._spent = sorted(shares), alpha, 0.0
        self.taken = 0

    def due(self, share: float) -> bool:
        return bool(self._ahead) and share >= self._ahead[0]

    def take(self, share: float) -> float:
        """Look when a `share` of the budget is gone; returns what this look's intervals may miss."""
        self._ahead = [later for later in self._ahead if later > share]
        self.taken += 1
        before, self._spent = self._spent, stats.spent(share, self._alpha)
        return self._spent - before


def measure(
    variants: Mapping[str, Open],
    inputs: Arrays,
    *,
    batch_size: int,
    plan: Plan | None = None,
    alpha: float = stats.ALPHA,
    decided: Callable[[Alternation], bool] | None = None,
    cpus: Sequence[int] = (),
    advance: Advance | None = None,
    clock: Clock = perf_counter,
) -> Alternation:
    """Measure the variants in turns.

    Args:
        alpha: what the intervals of each ratio may miss, over all looks together.
        decided: whether what was found so far settles every gate; without it the budget is used up.
        cpus: those that the variants are pinned to, to tell what else ran on them.
        advance: called after each launch with the seconds that it took.

    Raises:
        EngineError: an engine can't be opened. One that dies later is told in `Latency.failure`.
    """
    plan = plan or Plan()
    launches: list[_Launch] = []
    fastest: dict[str, float] = {}
    looks = _Looks(plan.looks if decided else (), alpha)
    watch, random = steadiness.Watch(cpus), Random(0)
    begun, alternation, overhead, failure = clock(), plan.launch, 0.0, None
    while True:
        start = clock()
        launch = _Launch({name: [] for name in variants})
        try:
            _conduct(launch, variants, inputs, replace(plan, launch=alternation), fastest, random, watch, clock)
        except EngineError as error:
            if not launches and not any(launch.turns.values()):
                raise
            failure = error.message
        launches.append(launch)
        now = clock()
        overhead = max(overhead, now - start - alternation)
        if advance:
            advance(now - start)
        elapsed = now - begun
        alternation = min(plan.launch, plan.budget - elapsed - overhead)  # the last launch may have half of it
        over = failure is not None or len(launches) >= plan.most or alternation < plan.launch / 2
        share = 1.0 if over else elapsed / plan.budget
        if not over and not (looks.due(share) and len(_counted(launches)[0]) >= plan.fewest):
            continue
        level = looks.take(share)
        found = Alternation(batch_size, len(cpus), tuple(launches), level, watch, failure, elapsed, looks.taken)
        if over or (decided and decided(found)):
            return found


def _conduct(
    launch: _Launch,
    variants: Mapping[str, Open],
    inputs: Arrays,
    plan: Plan,
    fastest: dict[str, float],
    random: Random,
    watch: steadiness.Watch,
    clock: Clock,
) -> None:
    """Launch all variants, warm them up and let them alternate; what they took goes into `launch` as it comes.

    `fastest` holds the nanoseconds of each variant's fastest run, in this launch and those before.
    """
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in random.sample(list(variants), len(variants)):
            engines[name] = stack.enter_context(closing(variants[name]()))
        for engine in engines.values():  # they load side by side, and only then is anything paused
            engine.ready()
        watch.timer(max(engine.timer() for engine in engines.values()))
        for engine in engines.values():
            engine.pause()
        for name, engine in engines.items():
            fastest[name] = min(fastest.get(name, math.inf), _warm_up(engine, inputs, plan, clock))
        runs = _turns(fastest, plan.block)
        # The first run after the others finds cold caches, and is left out where that would favour an variant: one has a
        # turn of a single run, another's median is of several. Where turns are of one run for all, it is all there is.
        uneven, several = len(set(runs.values())) > 1, min(runs.values()) > 2
        launch.cold = int((uneven or several) and max(fastest.values()) < _LONG * 1e9)
        with watch.over(engines.values()):
            _alternate(launch, engines, inputs, runs, plan.launch, random, clock)
        for name, engine in engines.items():
            engine.resume()
            launch.memory[name] = engine.peak_memory()


def _warm_up(engine: Engine, inputs: Arrays, plan: Plan, clock: Clock) -> float:
    """Run until the times settle; returns the nanoseconds that the fastest run took.

    The fastest, since it is what a neighbour's burst in this moment does not change: by medians, one of two equal variants
    would get turns of several runs and the other of one.
    """
    engine.resume()
    start, last, runs, fastest = clock(), math.inf, 3, math.inf
    while True:
        times = engine.time(inputs, runs).nanoseconds
        median, fastest = float(np.median(times)), min(fastest, float(times.min()))
        elapsed = clock() - start
        # Cold, a process gets faster from run to run; one that only got slower has settled, on a machine that has not.
        if elapsed > 8 * plan.warmup or (elapsed > plan.warmup and median > 0.95 * last):
            break
        last = median
        runs = _runs(median, plan.warmup / 4)
    engine.pause()
    return fastest


def _turns(fastest: Mapping[str, float], block: float) -> dict[str, int]:
    """How many runs a turn of each variant has; `fastest` are nanoseconds of a run, `block` seconds.

    Turns of one length for all: the machine's short spells then weigh as much in a fast variant as in a slow one. But variants
    that are nearly as fast get as many runs, since the one would else be rounded up and the other down.
    """
    slowest = max(fastest.values())
    turn = max(block, min(_LONGEST_TURN, slowest / 1e9))
    return {name: _runs(slowest if slowest < _ALIKE * once else once, turn) for name, once in fastest.items()}


def _runs(once: float, seconds: float) -> int:
    """How many runs of `once` nanoseconds come nearest to so many seconds; one at least."""
    return min(200, max(1, round(seconds * 1e9 / max(once, 1.0))))


def _alternate(
    launch: _Launch,
    engines: Mapping[str, Engine],
    inputs: Arrays,
    runs: Mapping[str, int],
    seconds: float,
    random: Random,
    clock: Clock,
) -> None:
    """Turns of every variant, as many for one as for the others: an even number, four at least."""
    order = list(engines)
    deadline = clock() + seconds
    done = 0
    while done < _FEWEST or done % 2 or clock() < deadline:
        order = order[::-1] if done % 2 else random.sample(order, len(order))
        for name in order:
            engine = engines[name]
            engine.resume()
            start = clock()
            turn = engine.time(inputs, runs[name] + launch.cold)
            elapsed = clock() - start
            engine.pause()
            # Two clocks, the worker's and ours: runs that take no time, or more than we waited for, did not happen so.
            times = turn.nanoseconds
            launch.jumped |= bool(times.min() <= 0) or float(times.sum()) / 1e9 > 1.5 * elapsed + 0.05
            launch.turns[name].append(turn)
        done += 1


@dataclass(frozen=True)
class Alternation:
    """What variants that took turns gave. Each may be held against any other: `seen` says how one looks at it."""

    batch_size: int
    threads: int
    launches: tuple[_Launch, ...]
    alpha: float  # what the intervals of this look may miss
    watch: steadiness.Watch
    failure: str | None  # of an engine that died
    seconds: float  # that it took
    looks: int

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.launches[0].turns)

    def seen(self, names: Mapping[str, str] | None = None) -> Latency:
        """The first of some variants, and how the others compare with it; `names` gives each its name there.

        Launches in which the clock jumped count for nothing, nor do disturbed rounds.
        """
        first, *others = names = names or {name: name for name in self.variants}
        whole = [launch for launch in self.launches if launch.whole]
        undisturbed, contended = self._counted
        found = {name: _variant(name, shown, whole, undisturbed) for name, shown in names.items()} if whole else {}
        ratios, tails = {}, {}
        if whole and self.failure is None:
            for name in others:
                logs = [float(np.median(np.log(one.medians(name) / one.medians(first)))) for one in undisturbed]
                ratios[names[name]] = stats.ratio(logs, _mean, self.alpha, resamples=10_000)
                if found[name].p99 is not None and found[first].p99 is not None:
                    pairs = list(zip(_upper(name, whole), _upper(first, whole), strict=True))
                    tails[names[name]] = stats.ratio(pairs, _tail_log_ratio, self.alpha, resamples=1_000)
        medians = [float(np.median(launch.medians(first))) for launch in undisturbed]
        return Latency(
            batch_size=self.batch_size,
            threads=self.threads,
            variants={variant.name: variant for variant in found.values()},
            ratios=ratios,
            tails=tails,
            launches=len(undisturbed),
            rounds=sum(len(launch.turns[first]) for launch in undisturbed),
            seconds=round(self.seconds, 2),
            looks=self.looks,
            alpha=self.alpha,
            steadiness=self.watch.found(medians, sum(one.jumped for one in self.launches), contended),
            failure=self.failure or (None if whole else "the clock jumped in every launch"),
        )

    def samples(self, names: Mapping[str, str] | None = None) -> Samples:
        """All that was measured of some variants, the disturbed rounds included, with what tells them apart."""
        names = names or {name: name for name in self.variants}
        found: Samples = {
            f"{shown}.{at}": np.concatenate(times)
            for at, one in enumerate(self.launches)
            for name, shown in names.items()
            if (times := one.times(name))
        }
        counted = iter(contention.find([one.turns for one in self.launches if one.whole], _FEWEST // 2)[1])
        for at, one in enumerate(self.launches):
            nothing = np.zeros(min(map(len, one.turns.values())), dtype=bool)
            found[f"counted.{at}"] = next(counted) if one.whole else nothing
            for name, shown in names.items():
                turns = one.turns[name]
                found[f"processor.{shown}.{at}"] = np.array([turn.processor for turn in turns], dtype=np.int64)
                found[f"preempted.{shown}.{at}"] = np.array([turn.preempted for turn in turns], dtype=np.int64)
        return found

    @cached_property
    def _counted(self) -> tuple[list[_Launch], contention.Contention]:
        return _counted(self.launches)


def _counted(launches: Sequence[_Launch]) -> tuple[list[_Launch], contention.Contention]:
    """The launches that can be believed, without their disturbed rounds."""
    whole = [launch for launch in launches if launch.whole]
    found, counted = contention.find([launch.turns for launch in whole], _FEWEST // 2)
    return [launch.only(rounds) for launch, rounds in zip(whole, counted, strict=True) if rounds.any()], found


def _mean(logs: Sequence[float]) -> float:
    return sum(logs) / len(logs)


def _upper(name: str, launches: Sequence[_Launch]) -> list[tuple[Times, int]]:
    """Of each launch, the runs among which the 99th percentile of any choice of launches is, and how many took less.

    Resampling all runs, of a model of some microseconds, would take longer than the budget.
    """
    taken = [np.concatenate(launch.times(name)) for launch in launches]
    least = min(np.percentile(times, 95) for times in taken)
    return [(times[times >= least], int((times < least).sum())) for times in taken]


def _tail_log_ratio(pairs: Sequence[tuple[tuple[Times, int], tuple[Times, int]]]) -> float:
    tops, bottoms = (_p99(side) for side in zip(*pairs, strict=True))
    return math.log(tops / bottoms)


def _p99(launches: Sequence[tuple[Times, int]]) -> float:
    upper, less = np.concatenate([times for times, _ in launches]), sum(count for _, count in launches)
    rank = 0.99 * (less + len(upper) - 1) - less  # in `upper`, of which the least is 0
    return float(np.quantile(upper, max(0.0, rank / max(1, len(upper) - 1))))


def _variant(name: str, shown: str, launches: Sequence[_Launch], undisturbed: Sequence[_Launch]) -> Variant:
    taken, quiet = (
        np.concatenate([times for one in some for times in one.times(name)]) for some in (launches, undisturbed)
    )
    p90, p99 = (float(value) / 1e6 for value in np.percentile(taken, (90, 99)))
    memory = max(launch.memory[name] for launch in launches)
    return Variant(
        shown, len(taken), float(np.median(quiet)) / 1e6, p90, p99 if len(taken) >= TAIL_RUNS else None, memory
    )


def notes(measured: Latency, where: str = "") -> list[str]:
    """What a reader has to know of a measurement beside its numbers, a line each; `where` says which it was."""
    where = where or f"Batch {measured.batch_size}"
    fastest = min((variant.p50 for variant in measured.variants.values()), default=0.0)
    found = [f"{where}: not measured, since it ended early: {measured.failure}"] if measured.failure else []
    return found + [f"{where}: {note}" for note in measured.steadiness.notes(fastest)]


def throughput(variant: Variant, batch_size: int) -> float:
    """Samples a second at the median latency."""
    return 1e3 * batch_size / variant.p50


def archive(measured: Mapping[str, Samples]) -> dict[str, NDArray[Any]]:
    """Samples of several measurements under the names of one file: `MEASUREMENT.VARIANT.LAUNCH`."""
    return {f"{name}.{key}": times for name, samples in measured.items() for key, times in samples.items()}
