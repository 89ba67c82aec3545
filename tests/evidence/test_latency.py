"""Ratios under drift, intervals that hold the difference between processes, and idle arms that are paused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from acdc_export.errors import EngineDied
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan

from .fakes import Fake

X = {"x": np.zeros((4, 1), dtype=np.float32)}
QUICK = Plan(launches=5, seconds=0.0, warmup=0.0, block=0.01, fewest_runs=3)


def test_the_ratio_survives_a_machine_that_drifts() -> None:
    clock, random = itertools.count(), np.random.default_rng(3)

    def drifting(base: float):  # twice as slow by the end, with noise
        return lambda: base * (1 + next(clock) / 4000) * math.exp(random.normal(0, 0.01))

    found, samples = latency.measure(
        {"sparse": lambda: Fake(cost=drifting(1e6)), "dense": lambda: Fake(cost=drifting(3e6))},
        X,
        batch_size=4,
        plan=QUICK,
    )
    ratio = found.ratios["dense"]
    assert ratio.low <= 3.0 <= ratio.high
    assert ratio.value == pytest.approx(3.0, rel=0.03)
    assert found.launches == 5
    assert found.rounds == 20
    assert set(samples) == {f"{arm}.{launch}" for arm in ("sparse", "dense") for launch in range(5)}


def test_processes_that_differ_widen_the_interval() -> None:
    """Within a launch nothing varies at all: an interval over rounds would have no width."""
    costs = iter([1.0e6, 1.1e6, 0.9e6, 1.05e6, 0.95e6])

    def launched() -> Fake:
        cost = next(costs)
        return Fake(cost=lambda: cost)

    same = latency.measure(
        {"sparse": lambda: Fake(), "dense": launched},
        X,
        batch_size=4,
        plan=QUICK,
    )[0].ratios["dense"]
    assert same.low < 0.95
    assert same.high > 1.05
    assert same.low <= 1.0 <= same.high


def test_one_arm_runs_while_the_others_are_paused() -> None:
    made: dict[str, list[Fake]] = {"sparse": [], "dense": []}
    awake: set[int] = set()

    class Watched(Fake):
        def ready(self) -> None:
            awake.add(id(self))  # a process runs from the start

        def resume(self) -> None:
            awake.add(id(self))

        def pause(self) -> None:
            awake.discard(id(self))

        def close(self) -> None:
            super().close()
            awake.discard(id(self))

        def time(self, inputs, repeats):  # type: ignore[no-untyped-def]
            assert awake == {id(self)}
            return super().time(inputs, repeats)

    def opener(name: str):
        def opened() -> Fake:
            made[name].append(Watched())
            return made[name][-1]

        return opened

    latency.measure({name: opener(name) for name in made}, X, batch_size=4, plan=QUICK)
    assert [len(engines) for engines in made.values()] == [5, 5]
    assert all(engine.closed for engines in made.values() for engine in engines)


def test_an_engine_that_dies_leaves_none_open() -> None:
    alive = Fake()

    def dying() -> float:
        raise EngineDied("dead", "bury it")

    with pytest.raises(EngineDied):
        latency.measure({"sparse": lambda: alive, "dense": lambda: Fake(cost=dying)}, X, batch_size=4, plan=QUICK)
    assert alive.closed


def test_percentiles_only_with_enough_runs() -> None:
    few, _ = latency.measure({"a": lambda: Fake(), "b": lambda: Fake()}, X, batch_size=4, plan=QUICK)
    assert few.arms["a"].p99 is None
    many, _ = latency.measure(
        {"a": lambda: Fake(), "b": lambda: Fake()}, X, batch_size=4, plan=Plan(5, 0.0, 0.0, 0.1, 60)
    )
    assert many.arms["a"].runs >= 1000
    assert many.arms["a"].p99 == pytest.approx(1.0)
    assert latency.throughput(many.arms["a"], 4) == pytest.approx(4000)
