"""Ratios stay under drift, intervals hold the difference between processes, budgets hold, and failures are told.

Time is the fakes' own: their runs and launches move a `Clock`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from acdc_export.errors import EngineDied
from acdc_export.evidence import latency, stats
from acdc_export.evidence.gates import Measurement
from acdc_export.evidence.latency import Alternation, Latency, Open, Plan, Samples

from .fakes import Clock, Fake

X = {"x": np.zeros((4, 1), dtype=np.float32)}
QUICK = Plan(budget=5.0, launch=0.5, warmup=0.02, block=0.005)  # a launch takes about 0.55 s, so eight or nine of them
MS = 1e6


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measure(clock: Clock, variants: dict[str, Open], plan: Plan = QUICK, **more: Any) -> tuple[Latency, Samples]:
    alternation = latency.measure(variants, X, batch_size=4, plan=plan, clock=clock, **more)
    return alternation.latency(), alternation.samples()


def steady(clock: Clock, opening: float = 0.0, **costs: float | Callable[[], float]) -> dict[str, Open]:
    """Return a variant for each cost of a run, in nanoseconds."""
    return {name: partial(Fake, cost=cost, clock=clock, opening=opening) for name, cost in costs.items()}


def keys(*variants: str, launches: int) -> set[str]:
    """The keys of the samples of so many launches."""
    names = {f"{kind}{variant}" for variant in variants for kind in ("", "processor.", "preempted.")}
    return {f"{name}.{launch}" for name in (*names, "counted") for launch in range(launches)}


class Kept(list[Fake]):
    """Opens engines of a kind, and keeps them."""

    def __init__(self, kind: Callable[..., Fake], **options: Any) -> None:
        super().__init__()
        self.kind, self.options = kind, options

    def __call__(self) -> Fake:
        self.append(self.kind(**self.options))
        return self[-1]


class Dying(Fake):
    """Dies when the clock has reached `at`."""

    def __init__(self, *, at: float, **options: Any) -> None:
        super().__init__(**options)
        self.at = at

    def times(self, repeats):  # type: ignore[no-untyped-def]
        if self.clock() >= self.at:
            raise EngineDied("the engine died of it", "bury it")
        return super().times(repeats)


class Jumping(Fake):
    """Bends the times of one turn by `bend`, when the clock outside has reached `at`."""

    def __init__(self, *, at: float, bend: Callable[[np.ndarray], np.ndarray], **options: Any) -> None:
        super().__init__(**options)
        self.opened, self.at, self.bend = self.clock(), at, bend

    def times(self, repeats):  # type: ignore[no-untyped-def]
        bent = self.opened < self.at <= self.clock()
        if bent:
            self.at = math.inf
        times = super().times(repeats)
        return self.bend(times).astype(np.int64) if bent else times


def test_the_ratio_survives_a_machine_that_changes_its_pace(clock: Clock) -> None:
    """Half of the rounds take twice as long: by chance, a variant's median over a launch would be of either half."""
    random = np.random.default_rng(0)

    def cost(base: float) -> float:
        pace = (1 if clock() % 0.31 < 0.11 else 2) * (1 + clock() / 10)
        return base * pace * math.exp(random.normal(0, 0.01))

    measured, samples = measure(clock, steady(clock, sparse=partial(cost, 5 * MS), dense=partial(cost, 15 * MS)))
    ratio = measured.ratios["dense"]
    assert ratio.low <= 3.0 <= ratio.high
    assert ratio.value == pytest.approx(3.0, rel=0.01)
    assert ratio.high / ratio.low < 1.05
    assert measured.steadiness.drift > 1.2
    assert set(samples) == keys("sparse", "dense", launches=measured.launches)


def test_processes_that_differ_widen_the_interval(clock: Clock) -> None:
    """Within a launch nothing varies at all: an interval over rounds would have no width."""
    costs = itertools.cycle([1.0 * MS, 1.1 * MS, 0.9 * MS, 1.05 * MS, 0.95 * MS])
    variants: dict[str, Open] = {
        **steady(clock, sparse=1 * MS),
        "dense": lambda: Fake(cost=next(costs), clock=clock),
    }
    ratio = measure(clock, variants, replace(QUICK, most=5))[0].ratios["dense"]
    # By hand: the logarithms' standard deviation is 0.0793, t(4) = 2.776, so 0.0985 to either side
    assert math.log(ratio.high / ratio.value) == pytest.approx(0.0985, rel=0.06)
    assert ratio.low <= 1.0 <= ratio.high


def test_one_variant_runs_while_the_others_are_paused(clock: Clock) -> None:
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

        def times(self, repeats):  # type: ignore[no-untyped-def]
            assert awake == {id(self)}
            return super().times(repeats)

    openers = {name: Kept(Watched, clock=clock) for name in ("sparse", "dense", "dense@ort")}
    measured, _ = measure(clock, openers, replace(QUICK, most=3))
    assert [len(engines) for engines in openers.values()] == [3, 3, 3]
    assert all(engine.closed for engines in openers.values() for engine in engines)
    assert set(measured.ratios) == {"dense", "dense@ort"}


def test_every_other_round_goes_back_the_way_the_last_one_came(clock: Clock) -> None:
    turns: list[str] = []

    def cost(name: str) -> float:
        turns.append(name)
        return 10 * MS  # a turn of one run

    names = ("a", "b", "c")
    measured, _ = measure(clock, steady(clock, **{name: partial(cost, name) for name in names}), replace(QUICK, most=1))
    counted = turns[-3 * measured.rounds :]
    rounds = [tuple(counted[start : start + 3]) for start in range(0, len(counted), 3)]
    assert len(rounds) >= 16
    assert all(order == reverse[::-1] for order, reverse in zip(rounds[::2], rounds[1::2], strict=True))
    assert {order[0] for order in rounds} == set(names)


class Cold(Fake):
    """The first run of a turn takes ten times as long."""

    def _once(self) -> float:
        return sum(super(Cold, self)._once() for _ in range(1 if self.warm else 10))

    def times(self, repeats):  # type: ignore[no-untyped-def]
        self.warm = False
        first = super().times(1)
        self.warm = True
        return np.concatenate([first, super().times(repeats - 1)])


@pytest.mark.parametrize(("cost", "runs", "shown"), [(10 * MS, 1, {100 * MS}), (1 * MS, 5, {1 * MS})])
def test_the_first_run_of_a_turn_is_left_out_unless_it_is_all_of_the_turn(
    clock: Clock, cost: float, runs: int, shown: set[float]
) -> None:
    measured, samples = measure(clock, {"a": partial(Cold, cost=cost, clock=clock)}, replace(QUICK, most=1))
    assert set(samples["a.0"]) == shown
    assert measured.variants["a"].runs == len(samples["a.0"]) == runs * measured.rounds


@pytest.mark.parametrize(("a", "b"), [(1.99, 2.01), (3.3, 3.4), (1.4, 4.2), (0.7, 4.2), (4.0, 26.0)])
def test_no_variant_is_favoured_by_what_is_in_the_caches(clock: Clock, a: float, b: float) -> None:
    """One variant has turns of a single, cold run, the other of several; or both are nearly as fast."""
    variants: dict[str, Open] = {
        name: partial(Cold, cost=cost * MS, clock=clock) for name, cost in (("a", a), ("b", b))
    }
    measured, _ = measure(clock, variants, replace(QUICK, most=3))
    assert measured.ratios["b"].value == pytest.approx(b / a)


def test_the_budget_is_used_up_and_no_launch_is_begun_that_would_break_it(clock: Clock) -> None:
    opening = itertools.chain([0.0, 2.0], itertools.repeat(0.0))
    took: list[float] = []
    variants: dict[str, Open] = {"a": lambda: Fake(clock=clock, opening=next(opening)), **steady(clock, b=1 * MS)}
    measured, _ = measure(clock, variants, replace(QUICK, budget=10.0), advance=took.append)
    assert measured.launches == len(took)
    assert took[1] == max(took) > 2.5
    assert sum(took) == pytest.approx(clock.now)
    assert measured.seconds == pytest.approx(clock.now, abs=0.01)
    assert 10.0 - took[1] < clock.now <= 10.0
    # As was known when the last one was begun, which may have had to do with half of the time.
    assert clock.now - took[-1] + took[1] - QUICK.launch / 2 <= 10.0
    assert (measured.looks, measured.alpha) == (1, stats.ALPHA)


def test_a_budget_too_small_for_two_launches_tells_nothing_of_others(clock: Clock) -> None:
    measured, _ = measure(clock, steady(clock, 1.0, a=1 * MS, b=2 * MS), replace(QUICK, budget=3.0))
    assert measured.launches == 1
    assert measured.ratios["b"] == Measurement(pytest.approx(2.0), 0.0, math.inf)


def test_there_are_no_more_launches_than_the_most(clock: Clock) -> None:
    assert measure(clock, steady(clock, a=1 * MS), replace(QUICK, most=2))[0].launches == 2


def looking(clock: Clock, plan: Plan, settled: Iterable[bool] = ()) -> tuple[Latency, list[tuple[float, Latency]]]:
    """Measure, and keep each look with its time; `settled` answers one look after another."""
    looks: list[tuple[float, Latency]] = []
    answers = itertools.chain(settled, itertools.repeat(False))

    def decided(alternation: Alternation) -> bool:
        looks.append((clock(), alternation.latency()))
        return next(answers)

    return measure(clock, steady(clock, 0.25, a=10 * MS, b=20 * MS), plan, decided=decided)[0], looks


LOOKING = replace(QUICK, budget=20.0)
LAUNCH = 1.3  # seconds, no more


def test_it_ends_at_the_first_look_that_decides(clock: Clock) -> None:
    measured, looks = looking(clock, LOOKING, [True])
    assert 10.0 <= clock.now < 10.0 + LAUNCH
    assert [look for _, look in looks] == [measured]
    assert measured.looks == 1
    assert measured.alpha == pytest.approx(stats.spent(clock.now / 20.0, 0.05))
    assert measured.alpha < 0.05 / 4


def test_it_looks_when_shares_of_the_budget_are_spent_and_at_its_end(clock: Clock) -> None:
    measured, looks = looking(clock, LOOKING)
    (first, _), (second, _) = looks
    assert 10.0 <= first < 10.0 + LAUNCH
    assert 15.0 <= second < 15.0 + LAUNCH
    assert 20.0 - LAUNCH < clock.now <= 20.0 + 0.16  # but for two rounds
    assert measured.looks == 3
    alphas = [*(look.alpha for _, look in looks), measured.alpha]
    assert sum(alphas) == pytest.approx(0.05)
    assert alphas == sorted(alphas)


def test_nothing_is_decided_before_the_fewest_launches(clock: Clock) -> None:
    measured, looks = looking(clock, replace(LOOKING, fewest=14))
    ((when, look),) = looks
    assert look.launches == 14
    assert when > 15.0  # the first look was due long ago, and the second too: one does for both
    assert measured.looks == 2


def test_the_share_of_the_error_that_a_run_may_make_is_shared_by_its_looks(clock: Clock) -> None:
    looks: list[Latency] = []
    variants = steady(clock, 0.25, a=10 * MS, b=20 * MS)
    measured, _ = measure(clock, variants, LOOKING, alpha=0.01, decided=lambda look: bool(looks.append(look.latency())))
    assert sum(look.alpha for look in [*looks, measured]) == pytest.approx(0.01)


@pytest.mark.parametrize("at", [0.8, 3.8])
def test_of_an_engine_that_dies_there_are_samples_but_no_ratios(clock: Clock, at: float) -> None:
    openers = {
        "sparse": Kept(Fake, cost=5 * MS, clock=clock),
        "dense": Kept(Dying, cost=5 * MS, clock=clock, at=at),
    }
    measured, samples = measure(clock, openers, replace(QUICK, launch=1.0, budget=30.0), decided=lambda look: True)
    died = len(openers["dense"]) - 1
    assert died == (3 if at > 1 else 0)
    assert measured.failure == "the engine died of it"
    assert (measured.ratios, measured.tails) == ({}, {})
    assert measured.launches == died
    assert set(measured.variants) == (set(openers) if died else set())
    assert set(samples) == keys(*openers, launches=died + 1)
    full = len(samples["dense.0"]) if died else 100  # runs of a launch that went to its end
    assert full / 2 < len(samples[f"dense.{died}"]) < 0.9 * full
    assert measured.rounds == died * full
    assert all(engine.closed for engines in openers.values() for engine in engines)
    assert latency.notes(measured)[0] == "Batch 4: not measured, since it ended early: the engine died of it"


def refused() -> Fake:
    raise EngineDied("can't be opened", "look")


def test_an_engine_that_can_not_be_opened_is_an_error(clock: Clock) -> None:
    variants: list[tuple[str, Open]] = [("sparse", Kept(Fake, clock=clock)), ("dense", refused)]
    for order in (variants, variants[::-1]):
        with pytest.raises(EngineDied, match="can't be opened"):
            measure(clock, dict(order))
    assert isinstance(variants[0][1], Kept)
    assert variants[0][1]
    assert all(engine.closed for engine in variants[0][1])


def test_an_engine_that_dies_before_anything_was_measured_is_an_error(clock: Clock) -> None:
    alive = Kept(Fake, clock=clock)
    with pytest.raises(EngineDied):
        measure(clock, {"sparse": alive, "dense": Kept(Dying, clock=clock, at=0.0)})
    assert [engine.closed for engine in alive] == [True]


def test_an_engine_that_can_not_be_opened_again_is_told(clock: Clock) -> None:
    opens = iter([partial(Fake, clock=clock), refused])
    measured, samples = measure(clock, {**steady(clock, a=1 * MS), "b": lambda: next(opens)()})
    assert measured.failure == "can't be opened"
    assert (measured.launches, measured.ratios) == (1, {})
    assert {name for name in samples if name[0] in "abc"} == {"a.0", "b.0", "counted.0", "counted.1"}


@pytest.mark.parametrize(
    ("bend", "jumps"),
    [
        (lambda times: times * (np.arange(len(times)) > 0), 1),  # a run that took no time
        (lambda times: times - 2 * times[0] * (np.arange(len(times)) == 1), 1),
        (lambda times: 100 * times, 1),
        (lambda times: 1.4 * times, 0),
    ],
    ids=["zero", "negative", "far too long", "a bit long"],
)
def test_a_launch_in_which_the_clock_jumps_is_left_out(
    clock: Clock, bend: Callable[[np.ndarray], np.ndarray], jumps: int
) -> None:
    variants: dict[str, Open] = {
        **steady(clock, sparse=1 * MS),
        "dense": partial(Jumping, cost=3 * MS, clock=clock, at=1.5, bend=bend),
    }
    measured, samples = measure(clock, variants, replace(QUICK, most=7))
    assert measured.steadiness.jumps == jumps
    assert measured.launches == 7 - jumps
    assert set(samples) == keys(*variants, launches=7)  # of all of them
    assert sum(samples[f"counted.{launch}"].any() for launch in range(7)) == 7 - jumps
    assert measured.variants["dense"].runs == sum(
        len(samples[f"dense.{launch}"]) for launch in range(7) if launch != 2 or not jumps
    )
    assert measured.ratios["dense"].value == pytest.approx(3.0)
    assert measured.failure is None
    assert len(latency.notes(measured)) == jumps


def test_a_clock_that_jumps_in_every_launch_is_a_failure(clock: Clock) -> None:
    class Stopped(Fake):
        def times(self, repeats):  # type: ignore[no-untyped-def]
            return 0 * super().times(repeats)

    measured, samples = measure(clock, {**steady(clock, a=1 * MS), "b": partial(Stopped, clock=clock)})
    assert measured.failure == "the clock jumped in every launch"
    assert (measured.launches, measured.variants, measured.ratios) == (0, {}, {})
    assert set(samples) == keys("a", "b", launches=measured.steadiness.jumps)
    assert measured.steadiness.jumps > 1


def test_percentiles_only_with_enough_runs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = steady(clock, a=1 * MS, b=1 * MS)
    runs = measure(clock, variants)[0].variants["a"].runs
    assert latency.TAIL_RUNS == 1000
    for enough in (runs, runs + 1):
        monkeypatch.setattr(latency, "TAIL_RUNS", enough)
        measured, _ = measure(clock, variants)
        assert measured.variants["a"].p99 == (pytest.approx(1.0) if runs >= enough else None)
        assert set(measured.tails) == ({"b"} if runs >= enough else set())


def test_tails_show_what_medians_do_not(clock: Clock) -> None:
    count = itertools.count()
    variants = steady(clock, even=1 * MS, bumpy=lambda: 1 * MS if next(count) % 25 else 4 * MS)
    measured, _ = measure(clock, variants)
    assert measured.ratios["bumpy"].value == pytest.approx(1.0)
    assert measured.tails["bumpy"].value == pytest.approx(4.0)
    assert (measured.variants["bumpy"].p50, measured.variants["bumpy"].p99) == (pytest.approx(1.0), pytest.approx(4.0))


def test_tails_are_of_the_runs_of_all_launches_together(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "TAIL_RUNS", 100)
    random = np.random.default_rng(0)

    def opened(base: float) -> Fake:
        pace = base * random.uniform(1, 1.1)  # of this launch
        return Fake(cost=lambda: pace * math.exp(random.normal(0, 0.3)), clock=clock)

    variants: dict[str, Open] = {"a": partial(opened, 1 * MS), "b": partial(opened, 2 * MS)}
    measured, samples = measure(clock, variants, replace(QUICK, launch=1.0, most=3))

    def plainly(chosen: Any) -> float:
        p99 = {
            name: np.percentile(np.concatenate([samples[f"{name}.{launch}"] for launch in chosen]), 99)
            for name in variants
        }
        return math.log(p99["b"] / p99["a"])

    expected = stats.ratio(range(measured.launches), plainly, stats.ALPHA, resamples=1_000)
    assert measured.launches == 3
    assert asdict(measured.tails["b"]) == pytest.approx(asdict(expected))


def test_a_variant_is_what_all_of_its_launches_took(clock: Clock) -> None:
    costs, memories = iter([1 * MS, 2 * MS, 3 * MS]), iter([10, 30, 20])
    variants: dict[str, Open] = {"a": lambda: Fake(cost=next(costs), memory=next(memories), clock=clock)}
    plan = replace(QUICK, most=3, launch=0.0)  # four rounds each
    variant = measure(clock, variants, plan)[0].variants["a"]
    assert (variant.runs, variant.p50, variant.p90, variant.memory) == (
        3 * 20,
        2.0,
        3.0,
        30,
    )  # turns are as long as the fastest needs
    assert latency.throughput(variant, 3) == pytest.approx(1500)


def test_notes_name_the_batch_size(clock: Clock) -> None:
    measured, _ = measure(clock, steady(clock, a=1000), replace(QUICK, launch=0.0, most=1))  # a clock of 30 ns
    assert latency.notes(measured) == ["Batch 4: the clock is coarse: a reading takes 30 ns, a run 1000 ns."]


def test_the_archive_names_measurement_variant_and_launch(clock: Clock) -> None:
    workloads = ("b1t2", "b64t2")
    samples = {name: measure(clock, steady(clock, a=1 * MS), replace(QUICK, most=2))[1] for name in workloads}
    archive = latency.archive(samples)
    assert set(archive) == {f"{workload}.{key}" for workload in samples for key in keys("a", launches=2)}
    assert archive["b64t2.a.1"] is samples["b64t2"]["a.1"]


def test_each_variant_may_be_held_against_any_other(clock: Clock) -> None:
    variants = steady(clock, a=2 * MS, b=4 * MS, c=8 * MS)
    alternation = latency.measure(variants, X, batch_size=4, plan=replace(QUICK, most=3), clock=clock, cpus=())
    assert alternation.variants == ("a", "b", "c")
    view = alternation.latency({"c": "sparse", "a": "dense"})
    assert list(view.variants) == ["sparse", "dense"]
    assert view.variants["sparse"].name == "sparse"
    assert view.variants["sparse"].p50 == pytest.approx(8)
    assert view.ratios == {"dense": Measurement(*[pytest.approx(0.25)] * 3)}
    assert set(alternation.samples({"c": "sparse"})) == keys("sparse", launches=3)
    assert alternation.latency().ratios["c"].value == pytest.approx(4)


def test_the_last_launch_is_cut_to_what_is_left_of_the_budget(clock: Clock) -> None:
    took: list[float] = []
    plan = replace(QUICK, budget=2.8, launch=1.0)
    measure(clock, steady(clock, a=1 * MS, b=1 * MS), plan, advance=took.append)
    assert len(took) == 3
    assert took[2] < 0.9 * took[1]
    assert clock.now <= 2.8 + 0.02  # but for its last round
