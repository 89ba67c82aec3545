"""Rounds that another process disturbed are left out, for all variants. What a variant does to itself counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.evidence import contention, latency
from acdc_export.evidence.contention import Contention
from acdc_export.evidence.engine import Turn
from acdc_export.evidence.latency import Plan

from .fakes import Clock, Fake

MS = 1e6
FREE = Turn(np.array([1000]), 2000, 0)  # two threads, both of them with a core of their own
HIT = Turn(np.array([5000]), 6000, 4)
X = {"x": np.zeros((4, 1), dtype=np.float32)}


def launch(a: str, b: str) -> dict[str, list[Turn]]:
    """Make a launch of two variants: `.` is an undisturbed turn, `!` a disturbed one."""
    return {name: [HIT if turn == "!" else FREE for turn in turns] for name, turns in (("a", a), ("b", b))}


def find(*launches: dict[str, list[Turn]], fewest: int = 1) -> tuple[Contention, list[list[int]]]:
    contended, rounds = contention.find(launches, fewest)
    return contended, [np.flatnonzero(counts).tolist() for counts in rounds]


def test_a_round_is_left_out_whichever_variant_was_hit() -> None:
    contended, rounds = find(launch("..!.", "...."), launch("....", "!..!"))
    assert contended == Contention(3 / 8, left_out=True)
    assert rounds == [[0, 1, 3], [1, 2]]


def test_a_launch_with_too_few_others_counts_for_nothing() -> None:
    contended, rounds = find(launch("....", "...."), launch(".!!!", "...."), launch("....", "...."), fewest=2)
    assert (contended.left_out, contended.launches) == (True, 1)
    assert rounds == [[0, 1, 2, 3], [], [0, 1, 2, 3]]


def test_where_nearly_all_is_disturbed_all_of_it_counts() -> None:
    contended, rounds = find(launch("!.!.", ".!.!"), launch("..!!", "!!.."))
    assert contended == Contention(1.0, left_out=False)
    assert rounds == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_one_launch_that_is_left_of_many_is_none() -> None:
    assert find(launch("....", "...."), launch("..!!", "!..."), fewest=2) == (
        Contention(3 / 8, left_out=False),
        [[0, 1, 2, 3], [0, 1, 2, 3]],
    )


def test_what_a_variant_does_to_itself_counts() -> None:
    """Its threads wait for each other: no other variant is hit in the same rounds."""
    contended, rounds = find(launch("....." * 8, "!...." * 8), launch("....." * 8, "..!.." * 8))
    assert contended == Contention(0.2, left_out=False, uneven="b")
    assert all(len(counts) == 40 for counts in rounds)


def test_a_slow_variant_is_hit_more_often_for_the_time_that_it_has() -> None:
    long, long_hit = Turn(np.array([5000]), 10000, 0), Turn(np.array([9000]), 10000, 1)
    slow = [long_hit if index % 6 == 5 else long for index in range(100)]
    fast = [HIT if index in (3, 50) else FREE for index in range(100)]
    contended, _ = contention.find([{"fast": fast, "slow": slow}], 1)
    assert (contended.uneven, contended.left_out) == (None, True)  # 16 in five times as long, and 2
    contended, _ = contention.find([{"fast": [FREE] * 100, "slow": slow}], 1)
    assert (contended.uneven, contended.left_out) == ("slow", False)


def test_a_few_that_a_variant_is_hit_alone_are_not_worth_a_word() -> None:
    contended, _ = find(*[launch("...." * 100, "!..." + "...." * 99)] * 15)
    assert contended == Contention(15 / 6000, left_out=True)


def test_less_processor_time_without_being_preempted_is_no_disturbance() -> None:
    """The threads of some runtimes sleep now and then."""
    asleep = Turn(np.array([5000]), 6000, 0)
    contended, _ = contention.find([{"a": [FREE, asleep, FREE, asleep], "b": [FREE] * 4}], 1)
    assert contended == Contention(0.0, left_out=False)


def test_of_no_launch_there_is_nothing_to_say() -> None:
    assert contention.find([], 4) == (Contention(0.0, left_out=False), [])


TURNS = st.builds(
    Turn,
    st.lists(st.integers(0, 10**9), min_size=1, max_size=3).map(np.array),
    st.integers(0, 10**10),
    st.integers(0, 5),
)


@given(st.lists(st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(TURNS, TURNS), min_size=n)), max_size=4))
def test_for_any_turns_there_are_rounds_that_count(rounds: list[list[tuple[Turn, Turn]]]) -> None:
    launches = [{"a": [a for a, _ in turns], "b": [b for _, b in turns]} for turns in rounds]
    contended, counted = contention.find(launches, 2)
    assert [len(counts) for counts in counted] == [len(turns) for turns in rounds]
    assert 0 <= contended.disturbed <= 1
    if not contended.left_out:
        assert all(counts.all() for counts in counted)
    else:
        assert sum(counts.any() for counts in counted) >= min(2, len(counted))
        assert all(counts.sum() == 0 or counts.sum() >= 2 for counts in counted)


class Shared(Fake):
    """One of two cores is somebody else's for a part of every third of a second: runs then take five times as long."""

    def __init__(self, random: np.random.Generator, **options: Any) -> None:
        super().__init__(**options)
        self.random, self.hit = random, False

    def _once(self) -> float:
        self.hit = self.clock() % 0.33 < 0.12
        cost = self.cost * self.random.normal(1, 0.01) * (self.random.uniform(1.5, 8) if self.hit else 1)  # type: ignore[operator]
        self.clock.now += cost / 1e9
        return float(cost)

    def time(self, inputs, repeats):  # type: ignore[no-untyped-def]
        turn = super().time(inputs, repeats)
        return Turn(turn.nanoseconds, int(turn.nanoseconds.sum() * (1.1 if self.hit else 2)), int(self.hit))


@pytest.mark.parametrize("slower", [1.0, 1.05])
def test_a_neighbour_costs_rounds_but_not_the_verdict(slower: float) -> None:
    clock, random = Clock(), np.random.default_rng(0)
    clock.now = 0.12  # both are warmed up undisturbed, so that a turn is of one run
    alternation = latency.measure(
        {
            "old": lambda: Shared(random, cost=7 * MS, clock=clock),
            "new": lambda: Shared(random, cost=7 * slower * MS, clock=clock),
        },
        X,
        batch_size=4,
        plan=Plan(budget=10.0),
        clock=clock,
    )
    measured, samples = alternation.latency(), alternation.samples()
    ratio = measured.ratios["new"]
    assert ratio.low <= slower <= ratio.high
    assert ratio.high / ratio.low < 1.02
    assert measured.variants["old"].p50 == pytest.approx(7, rel=0.02)
    assert measured.variants["old"].p90 > 10  # a tail is of all rounds
    assert measured.steadiness.contention.left_out
    # What was left out is in the samples, and can be told from what counts.
    counts, times = (
        np.concatenate([array for key, array in samples.items() if key.startswith(f"{name}.")])
        for name in ("counted", "old")
    )
    assert counts.sum() == measured.rounds
    assert len(counts) == len(times)
    assert np.median(times[counts]) / 1e6 == pytest.approx(measured.variants["old"].p50)
    assert measured.steadiness.contention.disturbed == pytest.approx(1 - counts.mean())
