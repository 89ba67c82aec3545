"""Latency by paired alternation: ratios, since milliseconds drift while ratios stay.

Every variant (the sparse half, its twin, an older bundle's sparse half) runs in a process of its own. In each round
every variant has one turn. The order is drawn anew for every other round and reversed in the next (B A C, C A B), so
that no variant keeps a better place. All variants but one are stopped, so that no spinning thread pool disturbs a
neighbour. A turn is as short as possible: one run of the slowest variant. The ratio of two variants within a round
cancels only that part of the machine's drift which is slower than a round. Turns of all variants take about as long.

Processes of the same model differ for as long as they live (pages, alignment, placement), and no number of rounds
averages that out. So all variants are launched again and again. Each launch gives one log ratio (the median over its
rounds), and the interval is over launches (`stats.ratio`).

Medians and their ratios leave out the rounds in which another process had a part of the cores (`contention`). Tails
are taken over all rounds, since they consist of rare events.

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
"""Raw measurements by key.

"VARIANT.LAUNCH" holds the nanoseconds of every run. "processor.VARIANT.LAUNCH" and "preempted.VARIANT.LAUNCH" hold what
`Turn` says of each turn. "counted.LAUNCH" says which rounds are undisturbed.
"""

_LONGEST_TURN = 0.1
"""Seconds that a fast variant's turn may take beside a slow one's."""

_MIN_ROUNDS = 4
"""The fewest rounds of a launch; half of them have to be undisturbed."""

_ALIKE = 1.5
"""Variants whose runs differ by less than this factor get turns of equally many runs."""

_LONG = 0.05
"""Seconds. For longer runs it hardly matters what is in the caches when they begin."""

TAIL_RUNS = 1000
"""A variant with fewer runs has no 99th percentile: at least ten runs have to lie beyond it."""


@dataclass(frozen=True)
class Plan:
    """How long to measure. Times are in seconds."""

    budget: float = 30.0  # for everything: launching, warming up, alternating
    looks: tuple[float, ...] = (0.5, 0.75)  # shares of the budget after which gates may be decided; the end is one too
    fewest: int = 8  # launches before an early decision: of fewer, the end says more than an early look
    most: int = 1000  # launches
    launch: float = 1.0  # of alternation, each launch
    warmup: float = 0.1  # at least, each variant
    block: float = 0.005  # at least, each turn


@dataclass(frozen=True)
class Variant:
    """Latency and memory of one variant, over all launches.

    `p50`, `p90` and `p99` are milliseconds a batch. The median is taken over undisturbed rounds, the tail over all.
    `memory` is the peak of all launches in bytes.
    """

    name: str
    runs: int
    p50: float
    p90: float
    p99: float | None  # None with fewer than `TAIL_RUNS` runs
    memory: int


@dataclass(frozen=True)
class Latency:
    """Latencies and their ratios at one batch size; the medians are over `launches` and `rounds`.

    `ratios` holds, for every variant but the first, its median latency over the first one's. `tails` holds the same
    ratio of the 99th percentiles, where there are enough runs. The intervals are at 1 - `alpha`.

    If an engine died, `failure` says how, and there are no ratios: a measurement that broke off is no evidence.
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
    """The turns of all variants in one launch, by variant, and the memory of those that went to their end."""

    turns: dict[str, list[Turn]]
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    jumped: bool = False  # the clock did
    cold: int = 0  # runs at the beginning of each turn that don't count

    @property
    def valid(self) -> bool:
        """Whether the launch went to its end, by a clock that can be believed."""
        return not self.jumped and len(self.memory) == len(self.turns)

    def times(self, name: str) -> list[Times]:
        """Nanoseconds of the runs of each turn of a variant."""
        return [turn.nanoseconds[self.cold :] for turn in self.turns[name]]

    def medians(self, name: str) -> NDArray[np.float64]:
        """Median nanoseconds of each turn of a variant, (rounds,)."""
        return np.array([np.median(times) for times in self.times(name)])

    def restricted(self, counted: NDArray[np.bool_]) -> _Launch:
        """The same launch with the `counted` rounds alone; `counted` is (rounds,)."""
        return replace(self, turns={name: list(compress(turns, counted)) for name, turns in self.turns.items()})


class _Looks:
    """Looks at the measurement at stated shares of the budget; each look spends its part of the error."""

    def __init__(self, shares: Sequence[float], alpha: float) -> None:
        self._ahead, self._alpha, self._spent = sorted(shares), alpha, 0.0
        self.count = 0

    def due(self, share: float) -> bool:
        """Whether a look is due when a `share` of the budget is spent."""
        return bool(self._ahead) and share >= self._ahead[0]

    def take(self, share: float) -> float:
        """Look when a `share` of the budget is spent; return the alpha of this look's intervals."""
        self._ahead = [later for later in self._ahead if later > share]
        self.count += 1
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
        variants: opens an engine of each variant, by name.
        inputs: one batch of `batch_size` rows.
        alpha: the error that the intervals of each ratio may make, over all looks together.
        decided: says whether the measurement so far settles every gate; without it the budget is used up.
        cpus: the CPUs that the variants are pinned to, to tell what else ran on them.
        advance: called after each launch with the seconds that it took.

    Raises:
        EngineError: an engine can't be opened. If one dies later, `Latency.failure` says so.
    """
    plan = plan or Plan()
    launches: list[_Launch] = []
    fastest: dict[str, float] = {}
    looks = _Looks(plan.looks if decided else (), alpha)
    watch, random = steadiness.Watch(cpus), Random(0)
    started, seconds, overhead, failure = clock(), plan.launch, 0.0, None
    while True:
        launched = clock()
        launch = _Launch({name: [] for name in variants})
        try:
            _run_launch(launch, variants, inputs, replace(plan, launch=seconds), fastest, random, watch, clock)
        except EngineError as error:
            if not launches and not any(launch.turns.values()):
                raise
            failure = error.message
        launches.append(launch)
        now = clock()
        overhead = max(overhead, now - launched - seconds)
        if advance:
            advance(now - launched)
        elapsed = now - started
        seconds = min(plan.launch, plan.budget - elapsed - overhead)  # the last launch may have half of it
        over = failure is not None or len(launches) >= plan.most or seconds < plan.launch / 2
        share = 1.0 if over else elapsed / plan.budget
        if not over and not (looks.due(share) and len(_undisturbed(launches)[0]) >= plan.fewest):
            continue
        level = looks.take(share)
        alternation = Alternation(batch_size, len(cpus), tuple(launches), level, watch, failure, elapsed, looks.count)
        if over or (decided and decided(alternation)):
            return alternation


def _run_launch(
    launch: _Launch,
    variants: Mapping[str, Open],
    inputs: Arrays,
    plan: Plan,
    fastest: dict[str, float],
    random: Random,
    watch: steadiness.Watch,
    clock: Clock,
) -> None:
    """Launch all variants, warm them up and let them alternate; every turn goes into `launch` at once.

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
        runs = _runs_per_turn(fastest, plan.block)
        # The first run after the others finds cold caches. It is left out where it would favour a variant: one has a
        # turn of a single run, another's median is of several. Where every turn is a single run, it has to stay.
        uneven, several = len(set(runs.values())) > 1, min(runs.values()) > 2
        launch.cold = int((uneven or several) and max(fastest.values()) < _LONG * 1e9)
        with watch.over(engines.values()):
            _alternate(launch, engines, inputs, runs, plan.launch, random, clock)
        for name, engine in engines.items():
            engine.resume()
            launch.memory[name] = engine.peak_memory()


def _warm_up(engine: Engine, inputs: Arrays, plan: Plan, clock: Clock) -> float:
    """Run until the times settle; return the nanoseconds of the fastest run.

    A neighbour's burst in this moment doesn't change the fastest run. By medians, one of two equal variants would get
    turns of several runs and the other of one.
    """
    engine.resume()
    start, last, runs, fastest = clock(), math.inf, 3, math.inf
    while True:
        times = engine.time(inputs, runs).nanoseconds
        median, fastest = float(np.median(times)), min(fastest, float(times.min()))
        elapsed = clock() - start
        # A cold process gets faster from run to run. One that only got slower has settled, though the machine has not.
        if elapsed > 8 * plan.warmup or (elapsed > plan.warmup and median > 0.95 * last):
            break
        last = median
        runs = _runs(median, plan.warmup / 4)
    engine.pause()
    return fastest


def _runs_per_turn(fastest: Mapping[str, float], block: float) -> dict[str, int]:
    """How many runs a turn of each variant has; `fastest` are nanoseconds of a run, `block` is in seconds.

    Turns have one length for all variants: the machine's short spells then weigh as much in a fast variant as in a
    slow one. But variants that are nearly as fast get as many runs, or one would be rounded up and the other down.
    """
    slowest = max(fastest.values())
    turn = max(block, min(_LONGEST_TURN, slowest / 1e9))
    return {
        name: _runs(slowest if slowest < _ALIKE * nanoseconds else nanoseconds, turn)
        for name, nanoseconds in fastest.items()
    }


def _runs(nanoseconds: float, seconds: float) -> int:
    """How many runs of `nanoseconds` come nearest to `seconds`, 1 to 200."""
    return min(200, max(1, round(seconds * 1e9 / max(nanoseconds, 1.0))))


def _alternate(
    launch: _Launch,
    engines: Mapping[str, Engine],
    inputs: Arrays,
    runs: Mapping[str, int],
    seconds: float,
    random: Random,
    clock: Clock,
) -> None:
    """Let the variants take turns for `seconds`; the number of rounds is even, and `_MIN_ROUNDS` at least."""
    order = list(engines)
    deadline = clock() + seconds
    rounds = 0
    while rounds < _MIN_ROUNDS or rounds % 2 or clock() < deadline:
        order = order[::-1] if rounds % 2 else random.sample(order, len(order))
        for name in order:
            engine = engines[name]
            engine.resume()
            start = clock()
            turn = engine.time(inputs, runs[name] + launch.cold)
            elapsed = clock() - start
            engine.pause()
            # Two clocks, the worker's and ours. Runs that took no time, or more than we waited for, show a jump.
            times = turn.nanoseconds
            launch.jumped |= bool(times.min() <= 0) or float(times.sum()) / 1e9 > 1.5 * elapsed + 0.05
            launch.turns[name].append(turn)
        rounds += 1


@dataclass(frozen=True)
class Alternation:
    """The launches of variants that took turns. `latency` holds any of the variants against any other."""

    batch_size: int
    threads: int
    launches: tuple[_Launch, ...]
    alpha: float  # of the intervals of this look
    watch: steadiness.Watch
    failure: str | None  # of an engine that died
    seconds: float  # that it took
    looks: int

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants."""
        return tuple(self.launches[0].turns)

    def latency(self, names: Mapping[str, str] | None = None) -> Latency:
        """Compare the first of some variants with the others; by default of all.

        Launches in which the clock jumped count for nothing, nor do disturbed rounds.

        Args:
            names: the name of each variant here, and its name in the result.
        """
        first, *others = names = names or {name: name for name in self.variants}
        valid = [launch for launch in self.launches if launch.valid]
        undisturbed, contended = self._undisturbed
        variants = {name: _variant(name, label, valid, undisturbed) for name, label in names.items()} if valid else {}
        ratios, tails = {}, {}
        if valid and self.failure is None:
            for name in others:
                logs = [
                    float(np.median(np.log(launch.medians(name) / launch.medians(first)))) for launch in undisturbed
                ]
                ratios[names[name]] = stats.ratio(logs, _mean, self.alpha, resamples=10_000)
                if variants[name].p99 is not None and variants[first].p99 is not None:
                    tops = list(zip(_top_runs(name, valid), _top_runs(first, valid), strict=True))
                    tails[names[name]] = stats.ratio(tops, _tail_log_ratio, self.alpha, resamples=1_000)
        medians = [float(np.median(launch.medians(first))) for launch in undisturbed]
        jumps = sum(launch.jumped for launch in self.launches)
        return Latency(
            batch_size=self.batch_size,
            threads=self.threads,
            variants={variant.name: variant for variant in variants.values()},
            ratios=ratios,
            tails=tails,
            launches=len(undisturbed),
            rounds=sum(len(launch.turns[first]) for launch in undisturbed),
            seconds=round(self.seconds, 2),
            looks=self.looks,
            alpha=self.alpha,
            steadiness=self.watch.steadiness(medians, jumps, contended),
            failure=self.failure or (None if valid else "the clock jumped in every launch"),
        )

    def samples(self, names: Mapping[str, str] | None = None) -> Samples:
        """All raw measurements of some variants, disturbed rounds included, and which rounds are undisturbed.

        Args:
            names: the name of each variant here, and its name in the result; by default all variants.
        """
        names = names or {name: name for name in self.variants}
        samples: Samples = {
            f"{label}.{index}": np.concatenate(times)
            for index, launch in enumerate(self.launches)
            for name, label in names.items()
            if (times := launch.times(name))
        }
        counted = iter(contention.find([launch.turns for launch in self.launches if launch.valid], _MIN_ROUNDS // 2)[1])
        for index, launch in enumerate(self.launches):
            no_rounds = np.zeros(min(map(len, launch.turns.values())), dtype=bool)
            samples[f"counted.{index}"] = next(counted) if launch.valid else no_rounds
            for name, label in names.items():
                turns = launch.turns[name]
                samples[f"processor.{label}.{index}"] = np.array([turn.processor for turn in turns], dtype=np.int64)
                samples[f"preempted.{label}.{index}"] = np.array([turn.preempted for turn in turns], dtype=np.int64)
        return samples

    @cached_property
    def _undisturbed(self) -> tuple[list[_Launch], contention.Contention]:
        return _undisturbed(self.launches)


def _undisturbed(launches: Sequence[_Launch]) -> tuple[list[_Launch], contention.Contention]:
    """The valid launches without their disturbed rounds, and how much was disturbed."""
    valid = [launch for launch in launches if launch.valid]
    contended, counted = contention.find([launch.turns for launch in valid], _MIN_ROUNDS // 2)
    return [launch.restricted(rounds) for launch, rounds in zip(valid, counted, strict=True) if rounds.any()], contended


def _mean(logs: Sequence[float]) -> float:
    return sum(logs) / len(logs)


_TopRuns = tuple[Times, int]
"""The slowest runs of a launch, and how many runs were faster than those."""


def _top_runs(name: str, launches: Sequence[_Launch]) -> list[_TopRuns]:
    """Of each launch, the runs that hold the 99th percentile of any choice of launches.

    Resampling all runs, of a model of some microseconds, would take longer than the budget.
    """
    runs = [np.concatenate(launch.times(name)) for launch in launches]
    threshold = min(np.percentile(times, 95) for times in runs)
    return [(times[times >= threshold], int((times < threshold).sum())) for times in runs]


def _tail_log_ratio(launches: Sequence[tuple[_TopRuns, _TopRuns]]) -> float:
    variant, reference = (_p99(top_runs) for top_runs in zip(*launches, strict=True))
    return math.log(variant / reference)


def _p99(launches: Sequence[_TopRuns]) -> float:
    top, faster = np.concatenate([times for times, _ in launches]), sum(count for _, count in launches)
    rank = 0.99 * (faster + len(top) - 1) - faster  # in `top`, whose fastest run has rank 0
    return float(np.quantile(top, max(0.0, rank / max(1, len(top) - 1))))


def _variant(name: str, label: str, launches: Sequence[_Launch], undisturbed: Sequence[_Launch]) -> Variant:
    all_runs, quiet_runs = (
        np.concatenate([times for launch in group for times in launch.times(name)]) for group in (launches, undisturbed)
    )
    p90, p99 = (float(nanoseconds) / 1e6 for nanoseconds in np.percentile(all_runs, (90, 99)))
    return Variant(
        name=label,
        runs=len(all_runs),
        p50=float(np.median(quiet_runs)) / 1e6,
        p90=p90,
        p99=p99 if len(all_runs) >= TAIL_RUNS else None,
        memory=max(launch.memory[name] for launch in launches),
    )


def notes(measured: Latency, where: str = "") -> list[str]:
    """What a reader has to know of a measurement beside its numbers, a line each.

    `where` names the measurement; "Batch N" by default.
    """
    where = where or f"Batch {measured.batch_size}"
    fastest = min((variant.p50 for variant in measured.variants.values()), default=0.0)
    failures = [f"{where}: not measured, since it ended early: {measured.failure}"] if measured.failure else []
    return failures + [f"{where}: {note}" for note in measured.steadiness.notes(fastest)]


def throughput(variant: Variant, batch_size: int) -> float:
    """Samples a second at the median latency."""
    return 1e3 * batch_size / variant.p50


def archive(measured: Mapping[str, Samples]) -> dict[str, NDArray[Any]]:
    """Put samples of several measurements under the names of one file: `MEASUREMENT.VARIANT.LAUNCH`."""
    return {f"{name}.{key}": times for name, samples in measured.items() for key, times in samples.items()}
