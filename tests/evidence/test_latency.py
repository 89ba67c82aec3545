"""Ratios under drift, intervals that hold the difference between processes, a budget that holds, and what went wrong.

Time is the fakes' own: a `Clock` that their runs and launches move.
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
    found = latency.measure(variants, X, batch_size=4, plan=plan, clock=clock, **more)
    return found.seen(), found.samples()


def steady(clock: Clock, opening: float = 0.0, **costs: float | Callable[[], float]) -> dict[str, Open]:
    """An variant for each cost of a run, in nanoseconds."""
    return {name: partial(Fake, cost=cost, clock=clock, opening=opening) for name, cost in costs.items()}


def kept(*variants: str, launches: int) -> set[str]:
    """The names of what is kept of so many launches."""
    of_arms = {f"{kind}{variant}" for variant in variants for kind in ("", "processor.", "preempted.")}
    return {f"{name}.{at}" for name in (*of_arms, "counted") for at in range(launches)}


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
    """What its clock says of one turn, when the clock outside has reached `at`, is bent by `bend`."""

    def __init__(self, *, at: float, bend: Callable[[np.ndarray], np.ndarray], **options: Any) -> None:
        super().__init__(**options)
        self.begun, self.at, self.bend = self.clock(), at, bend

    def times(self, repeats):  # type: ignore[no-untyped-def]
        bent = self.begun < self.at <= self.clock()
        if bent:
            self.at = math.inf
        times = super().times(repeats)
        return self.bend(times).astype(np.int64) if bent else times


def test_the_ratio_survives_a_machine_that_changes_its_pace(clock: Clock) -> None:
    """Half of the rounds take twice as long: an variant's median over a launch would be of either half, by chance."""
    random = np.random.default_rng(0)

    def cost(base: float) -> float:
        pace = (1 if clock() % 0.31 < 0.11 else 2) * (1 + clock() / 10)
        return base * pace * math.exp(random.normal(0, 0.01))

    found, samples = measure(clock, steady(clock, sparse=partial(cost, 5 * MS), dense=partial(cost, 15 * MS)))
    ratio = found.ratios["dense"]
    assert ratio.low <= 3.0 <= ratio.high
    assert ratio.value == pytest.approx(3.0, rel=0.01)
    assert ratio.high / ratio.low < 1.05
    assert found.steadiness.drift > 1.2
    assert set(samples) == kept("sparse", "dense", launches=found.launches)


def test_processes_that_differ_widen_the_interval(clock: Clock) -> None:
    """Within a launch nothing varies at all: an interval over rounds would have no width."""
    costs = itertools.cycle([1.0 * MS, 1.1 * MS, 0.9 * MS, 1.05 * MS, 0.95 * MS])
    variants: dict[str, Open] = {
        **steady(clock, sparse=1 * MS),
        "dense": lambda: Fake(cost=next(costs), clock=clock),
    }
    same = measure(clock, variants, replace(QUICK, most=5))[0].ratios["dense"]
    # By hand: the logarithms' standard deviation is 0.0793, t(4) = 2.776, so 0.0985 to either side
    assert math.log(same.high / same.value) == pytest.approx(0.0985, rel=0.06)
    assert same.low <= 1.0 <= same.high


def test_one_arm_runs_while_the_others_are_paused(clock: Clock) -> None:
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

    made = {name: Kept(Watched, clock=clock) for name in ("sparse", "dense", "dense@ort")}
    found, _ = measure(clock, made, replace(QUICK, most=3))
    assert [len(engines) for engines in made.values()] == [3, 3, 3]
    assert all(engine.closed for engines in made.values() for engine in engines)
    assert set(found.ratios) == {"dense", "dense@ort"}


def test_every_other_round_goes_back_the_way_the_last_one_came(clock: Clock) -> None:
    turns: list[str] = []

    def cost(name: str) -> float:
        turns.append(name)
        return 10 * MS  # a turn of one run

    names = ("a", "b", "c")
    found, _ = measure(clock, steady(clock, **{name: partial(cost, name) for name in names}), replace(QUICK, most=1))
    taken = turns[-3 * found.rounds :]
    rounds = [tuple(taken[at : at + 3]) for at in range(0, len(taken), 3)]
    assert len(rounds) >= 16
    assert all(there == back[::-1] for there, back in zip(rounds[::2], rounds[1::2], strict=True))
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
    found, samples = measure(clock, {"a": partial(Cold, cost=cost, clock=clock)}, replace(QUICK, most=1))
    assert set(samples["a.0"]) == shown
    assert found.variants["a"].runs == len(samples["a.0"]) == runs * found.rounds


@pytest.mark.parametrize(("a", "b"), [(1.99, 2.01), (3.3, 3.4), (1.4, 4.2), (0.7, 4.2), (4.0, 26.0)])
def test_no_arm_is_favoured_by_what_is_in_the_caches(clock: Clock, a: float, b: float) -> None:
    """One has turns of a single run, which is cold, and the other's are of several; or both are nearly as fast."""
    variants: dict[str, Open] = {
        name: partial(Cold, cost=cost * MS, clock=clock) for name, cost in (("a", a), ("b", b))
    }
    found, _ = measure(clock, variants, replace(QUICK, most=3))
    assert found.ratios["b"].value == pytest.approx(b / a)


def test_the_budget_is_used_up_and_no_launch_is_begun_that_would_break_it(clock: Clock) -> None:
    opening = itertools.chain([0.0, 2.0], itertools.repeat(0.0))
    took: list[float] = []
    variants: dict[str, Open] = {"a": lambda: Fake(clock=clock, opening=next(opening)), **steady(clock, b=1 * MS)}
    found, _ = measure(clock, variants, replace(QUICK, budget=10.0), advance=took.append)
    assert found.launches == len(took)
    assert took[1] == max(took) > 2.5
    assert sum(took) == pytest.approx(clock.now)
    assert found.seconds == pytest.approx(clock.now, abs=0.01)
    assert 10.0 - took[1] < clock.now <= 10.0
    # As was known when the last one was begun, which may have had to do with half of the time.
    assert clock.now - took[-1] + took[1] - QUICK.launch / 2 <= 10.0
    assert (found.looks, found.alpha) == (1, stats.ALPHA)


def test_a_budget_too_small_for_two_launches_tells_nothing_of_others(clock: Clock) -> None:
    found, _ = measure(clock, steady(clock, 1.0, a=1 * MS, b=2 * MS), replace(QUICK, budget=3.0))
    assert found.launches == 1
    assert found.ratios["b"] == Measurement(pytest.approx(2.0), 0.0, math.inf)


def test_there_are_no_more_launches_than_the_most(clock: Clock) -> None:
    assert measure(clock, steady(clock, a=1 * MS), replace(QUICK, most=2))[0].launches == 2


def looking(clock: Clock, plan: Plan, settled: Iterable[bool] = ()) -> tuple[Latency, list[tuple[float, Latency]]]:
    """A measurement of which each look is kept with its time; `settled` answers one look after another."""
    seen: list[tuple[float, Latency]] = []
    answers = itertools.chain(settled, itertools.repeat(False))

    def decided(found: Alternation) -> bool:
        seen.append((clock(), found.seen()))
        return next(answers)

    return measure(clock, steady(clock, 0.25, a=10 * MS, b=20 * MS), plan, decided=decided)[0], seen


LOOKING = replace(QUICK, budget=20.0)
LAUNCH = 1.3  # seconds, no more


def test_it_ends_at_the_first_look_that_decides(clock: Clock) -> None:
    found, seen = looking(clock, LOOKING, [True])
    assert 10.0 <= clock.now < 10.0 + LAUNCH
    assert [look for _, look in seen] == [found]
    assert found.looks == 1
    assert found.alpha == pytest.approx(stats.spent(clock.now / 20.0, 0.05))
    assert found.alpha < 0.05 / 4


def test_it_looks_when_shares_of_the_budget_are_spent_and_at_its_end(clock: Clock) -> None:
    found, seen = looking(clock, LOOKING)
    (first, _), (second, _) = seen
    assert 10.0 <= first < 10.0 + LAUNCH
    assert 15.0 <= second < 15.0 + LAUNCH
    assert 20.0 - LAUNCH < clock.now <= 20.0 + 0.16  # but for two rounds
    assert found.looks == 3
    alphas = [*(look.alpha for _, look in seen), found.alpha]
    assert sum(alphas) == pytest.approx(0.05)
    assert alphas == sorted(alphas)


def test_nothing_is_decided_before_the_fewest_launches(clock: Clock) -> None:
    found, seen = looking(clock, replace(LOOKING, fewest=14))
    ((when, look),) = seen
    assert look.launches == 14
    assert when > 15.0  # the first look was due long ago, and the second too: one does for both
    assert found.looks == 2


def test_the_share_of_the_error_that_a_run_may_make_is_shared_by_its_looks(clock: Clock) -> None:
    seen: list[Latency] = []
    variants = steady(clock, 0.25, a=10 * MS, b=20 * MS)
    found, _ = measure(clock, variants, LOOKING, alpha=0.01, decided=lambda look: bool(seen.append(look.seen())))
    assert sum(look.alpha for look in [*seen, found]) == pytest.approx(0.01)


@pytest.mark.parametrize("at", [0.8, 3.8])
def test_of_an_engine_that_dies_there_are_samples_but_no_ratios(clock: Clock, at: float) -> None:
    made = {
        "sparse": Kept(Fake, cost=5 * MS, clock=clock),
        "dense": Kept(Dying, cost=5 * MS, clock=clock, at=at),
    }
    found, samples = measure(clock, made, replace(QUICK, launch=1.0, budget=30.0), decided=lambda look: True)
    died = len(made["dense"]) - 1
    assert died == (3 if at > 1 else 0)
    assert found.failure == "the engine died of it"
    assert (found.ratios, found.tails) == ({}, {})
    assert found.launches == died
    assert set(found.variants) == (set(made) if died else set())
    assert set(samples) == kept(*made, launches=died + 1)
    whole = len(samples["dense.0"]) if died else 100
    assert whole / 2 < len(samples[f"dense.{died}"]) < 0.9 * whole
    assert found.rounds == died * whole
    assert all(engine.closed for engines in made.values() for engine in engines)
    assert latency.notes(found)[0] == "Batch 4: not measured, since it ended early: the engine died of it"


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
    found, samples = measure(clock, {**steady(clock, a=1 * MS), "b": lambda: next(opens)()})
    assert found.failure == "can't be opened"
    assert (found.launches, found.ratios) == (1, {})
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
    found, samples = measure(clock, variants, replace(QUICK, most=7))
    assert found.steadiness.jumps == jumps
    assert found.launches == 7 - jumps
    assert set(samples) == kept(*variants, launches=7)  # of all of them
    assert sum(samples[f"counted.{at}"].any() for at in range(7)) == 7 - jumps
    assert found.variants["dense"].runs == sum(len(samples[f"dense.{at}"]) for at in range(7) if at != 2 or not jumps)
    assert found.ratios["dense"].value == pytest.approx(3.0)
    assert found.failure is None
    assert len(latency.notes(found)) == jumps


def test_a_clock_that_jumps_in_every_launch_is_a_failure(clock: Clock) -> None:
    class Stopped(Fake):
        def times(self, repeats):  # type: ignore[no-untyped-def]
            return 0 * super().times(repeats)

    found, samples = measure(clock, {**steady(clock, a=1 * MS), "b": partial(Stopped, clock=clock)})
    assert found.failure == "the clock jumped in every launch"
    assert (found.launches, found.variants, found.ratios) == (0, {}, {})
    assert set(samples) == kept("a", "b", launches=found.steadiness.jumps)
    assert found.steadiness.jumps > 1


def test_percentiles_only_with_enough_runs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = steady(clock, a=1 * MS, b=1 * MS)
    runs = measure(clock, variants)[0].variants["a"].runs
    assert latency.TAIL_RUNS == 1000
    for enough in (runs, runs + 1):
        monkeypatch.setattr(latency, "TAIL_RUNS", enough)
        found, _ = measure(clock, variants)
        assert found.variants["a"].p99 == (pytest.approx(1.0) if runs >= enough else None)
        assert set(found.tails) == ({"b"} if runs >= enough else set())


def test_tails_show_what_medians_do_not(clock: Clock) -> None:
    count = itertools.count()
    variants = steady(clock, even=1 * MS, bumpy=lambda: 1 * MS if next(count) % 25 else 4 * MS)
    found, _ = measure(clock, variants)
    assert found.ratios["bumpy"].value == pytest.approx(1.0)
    assert found.tails["bumpy"].value == pytest.approx(4.0)
    assert (found.variants["bumpy"].p50, found.variants["bumpy"].p99) == (pytest.approx(1.0), pytest.approx(4.0))


def test_tails_are_of_the_runs_of_all_launches_together(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "TAIL_RUNS", 100)
    random = np.random.default_rng(0)

    def opened(base: float) -> Fake:
        pace = base * random.uniform(1, 1.1)  # of this launch
        return Fake(cost=lambda: pace * math.exp(random.normal(0, 0.3)), clock=clock)

    variants: dict[str, Open] = {"a": partial(opened, 1 * MS), "b": partial(opened, 2 * MS)}
    found, samples = measure(clock, variants, replace(QUICK, launch=1.0, most=3))

    def plainly(chosen: Any) -> float:
        p99 = {name: np.percentile(np.concatenate([samples[f"{name}.{at}"] for at in chosen]), 99) for name in variants}
        return math.log(p99["b"] / p99["a"])

    wanted = stats.ratio(range(found.launches), plainly, stats.ALPHA, resamples=1_000)
    assert found.launches == 3
    assert asdict(found.tails["b"]) == pytest.approx(asdict(wanted))


def test_an_arm_is_what_all_of_its_launches_took(clock: Clock) -> None:
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
    found, _ = measure(clock, steady(clock, a=1000), replace(QUICK, launch=0.0, most=1))  # the fake's clock takes 30 ns
    assert latency.notes(found) == ["Batch 4: the clock is coarse: a reading takes 30 ns, a run 1000 ns."]


def test_the_archive_names_measurement_arm_and_launch(clock: Clock) -> None:
    samples = {at: measure(clock, steady(clock, a=1 * MS), replace(QUICK, most=2))[1] for at in ("b1t2", "b64t2")}
    archive = latency.archive(samples)
    assert set(archive) == {f"{at}.{name}" for at in samples for name in kept("a", launches=2)}
    assert archive["b64t2.a.1"] is samples["b64t2"]["a.1"]


def test_each_arm_may_be_held_against_any_other(clock: Clock) -> None:
    variants = steady(clock, a=2 * MS, b=4 * MS, c=8 * MS)
    found = latency.measure(variants, X, batch_size=4, plan=replace(QUICK, most=3), clock=clock, cpus=())
    assert found.variants == ("a", "b", "c")
    view = found.seen({"c": "sparse", "a": "dense"})
    assert list(view.variants) == ["sparse", "dense"]
    assert view.variants["sparse"].name == "sparse"
    assert view.variants["sparse"].p50 == pytest.approx(8)
    assert view.ratios == {"dense": Measurement(*[pytest.approx(0.25)] * 3)}
    assert set(found.samples({"c": "sparse"})) == kept("sparse", launches=3)
    assert found.seen().ratios["c"].value == pytest.approx(4)


def test_the_last_launch_is_cut_to_what_is_left_of_the_budget(clock: Clock) -> None:
    took: list[float] = []
    plan = replace(QUICK, budget=2.8, launch=1.0)
    measure(clock, steady(clock, a=1 * MS, b=1 * MS), plan, advance=took.append)
    assert len(took) == 3
    assert took[2] < 0.9 * took[1]
    assert clock.now <= 2.8 + 0.02  # but for its last round
