"""Latency by paired alternation: ratios, since milliseconds drift while ratios stay.

Every arm (the sparse half, its twin, the twin in a control engine) is a process of its own. In each round the arms
take turns, in an order that is drawn anew for every other round and reversed in the next (B A C, C A B), so that no
arm keeps a better place than another; all but one are stopped, so that no spinning thread pool disturbs a neighbour.
A turn is a short block of runs, whose first is dropped; its median is one sample. The ratio of two arms within a
round cancels the machine's drift.

Processes of the same model differ for as long as they live (pages, alignment, placement), which no number of rounds
averages out. So all arms are launched anew several times, each launch gives one log ratio (the median over its
rounds), and the interval is Student's over launches: the top level of the hierarchy carries the error (Kalibera and
Jones 2013, "Rigorous benchmarking in reasonable time").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from random import Random
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..progress import Advance
from . import stats
from .engine import Arrays, Engine
from .gates import Measurement

Open = Callable[[], Engine]
Samples = dict[str, NDArray[np.int64]]  # raw nanoseconds of every run, (runs,), by "ARM.LAUNCH"


@dataclass(frozen=True)
class Plan:
    """How long to measure. Times in seconds."""

    launches: int = 5
    seconds: float = 1.5  # of alternation, each launch
    warmup: float = 0.25  # at least, each arm
    block: float = 0.015  # at least, each turn
    fewest_runs: int = 6  # in each turn


@dataclass(frozen=True)
class Arm:
    """What one arm took, over all launches: milliseconds a batch, and the most memory in bytes."""

    name: str
    runs: int
    p50: float
    p90: float
    p99: float | None  # None with fewer than 1,000 runs: ten beyond the percentile at least
    memory: int


@dataclass(frozen=True)
class Latency:
    """One batch size. `ratios` holds, for every arm but the first, its latency over the first one's."""

    batch_size: int
    arms: dict[str, Arm]
    ratios: dict[str, Measurement]
    launches: int
    rounds: int


def measure(
    arms: Mapping[str, Open],
    inputs: Arrays,
    *,
    batch_size: int,
    plan: Plan | None = None,
    advance: Advance | None = None,
) -> tuple[Latency, Samples]:
    """Measure the arms against the first of them; also the raw samples. `advance(1)` is called after each launch."""
    plan = plan or Plan()
    first = next(iter(arms))
    samples: Samples = {}
    memory = dict.fromkeys(arms, 0)
    logs: dict[str, list[float]] = {name: [] for name in arms if name != first}
    rounds = 0
    random = Random(0)
    for launch in range(plan.launches):
        with ExitStack() as stack:
            engines: dict[str, Engine] = {}
            for name in random.sample(list(arms), len(arms)):
                engines[name] = stack.enter_context(closing(arms[name]()))
            for engine in engines.values():  # they load side by side, and only then is anything paused
                engine.ready()
            for engine in engines.values():
                engine.pause()
            runs = {name: _warm_up(engine, inputs, plan) for name, engine in engines.items()}
            blocks = _alternate(engines, inputs, runs, plan.seconds, random)
            for name, engine in engines.items():
                engine.resume()
                memory[name] = max(memory[name], engine.peak_memory())
                samples[f"{name}.{launch}"] = np.concatenate(blocks[name])
        medians = {name: np.array([np.median(block) for block in taken]) for name, taken in blocks.items()}
        for name, log in logs.items():
            log.append(float(np.median(np.log(medians[name] / medians[first]))))
        rounds += len(medians[first])
        if advance:
            advance(1)
    found = Latency(
        batch_size,
        {name: _arm(name, samples, memory[name]) for name in arms},
        {name: _ratio(log) for name, log in logs.items()},
        plan.launches,
        rounds,
    )
    return found, samples


def _warm_up(engine: Engine, inputs: Arrays, plan: Plan) -> int:
    """Run until the times settle; returns how many runs make a block of `plan.block` seconds."""
    engine.resume()
    start, last = perf_counter(), math.inf
    while True:
        median = float(np.median(engine.time(inputs, plan.fewest_runs)))
        elapsed = perf_counter() - start
        if elapsed > 8 * plan.warmup or (elapsed > plan.warmup and abs(median - last) < 0.05 * last):
            break
        last = median
    engine.pause()
    return min(200, max(plan.fewest_runs, math.ceil(plan.block * 1e9 / median)))


def _alternate(
    engines: Mapping[str, Engine], inputs: Arrays, runs: Mapping[str, int], seconds: float, random: Random
) -> dict[str, list[NDArray[np.int64]]]:
    """Blocks of raw nanoseconds for each arm, as many for one as for the others: an even number, four at least."""
    blocks: dict[str, list[NDArray[np.int64]]] = {name: [] for name in engines}
    order = list(engines)
    deadline = perf_counter() + seconds
    done = 0
    while done < 4 or done % 2 or perf_counter() < deadline:
        order = order[::-1] if done % 2 else random.sample(order, len(order))
        for name in order:
            engines[name].resume()
            blocks[name].append(engines[name].time(inputs, runs[name] + 1)[1:])
            engines[name].pause()
        done += 1
    return blocks


def _ratio(logs: list[float]) -> Measurement:
    return Measurement(*(math.exp(value) for value in stats.mean_interval(logs)))


def _arm(name: str, samples: Samples, memory: int) -> Arm:
    taken = np.concatenate([times for key, times in samples.items() if key.rpartition(".")[0] == name])
    p50, p90, p99 = (float(value) / 1e6 for value in np.percentile(taken, (50, 90, 99)))
    return Arm(name, len(taken), p50, p90, p99 if len(taken) >= 1000 else None, memory)


def throughput(arm: Arm, batch_size: int) -> float:
    """Samples a second at the median latency."""
    return 1e3 * batch_size / arm.p50


def archive(measured: Mapping[int, Samples]) -> dict[str, NDArray[np.int64]]:
    """The samples of all batch sizes under the names of one file: `bN.ARM.LAUNCH`."""
    return {f"b{size}.{key}": times for size, samples in measured.items() for key, times in samples.items()}
