"""Which rounds another process disturbed; the processor time that the workers lost in them tells.

A process that gets onto one of the cores stretches a run of some milliseconds to several times that, in one variant or
the other. Alternation doesn't cancel what lasts no longer than a turn, but the turn itself shows it. Undisturbed, the
threads of a runtime get the cores for a share of the time that stays the same from turn to turn. A turn was disturbed
if its share is clearly below that of its variant and a thread had to leave its core. Its whole round is left out, for
all variants, so that none is favoured.

What a variant does to itself has to count. So nothing is left out where one variant is disturbed far more often than
another, for the time that they had: a third party that comes and goes would disturb both. (A process that stays on a
core for good may also disturb one variant more, by where it puts that variant's threads at each launch. Then no median
of the remaining rounds would be fair either.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engine import Turn

LOST = 0.1
"""A turn was disturbed if it lost more than this share of the processor time that its variant usually gets."""

_LEAST = 0.25  # the share of rounds that has to remain: where nearly all are disturbed, that is how the machine is
_UNEVEN, _BY_CHANCE = 3.0, 10  # times as often as the other variant, and this many turns more
_MATTERS = 0.05  # the share of a variant's turns; a median hardly feels fewer


@dataclass(frozen=True)
class Contention:
    """How much of a measurement was disturbed."""

    disturbed: float  # share of the rounds, 0 to 1
    left_out: bool
    launches: int = 0  # that were left out as a whole, since too few of their rounds were undisturbed
    uneven: str | None = None  # the variant that was disturbed far more often than another, perhaps by itself


def find(launches: Sequence[Mapping[str, Sequence[Turn]]], fewest: int) -> tuple[Contention, list[NDArray[np.bool_]]]:
    """How much was disturbed, and for each launch which of its rounds count; shape `(rounds,)`.

    If fewer than `fewest` rounds of a launch remain, none of them counts.

    Args:
        launches: of each launch, the turns of every variant, one a round.
    """
    if not launches:
        return Contention(0.0, False), []
    names, first = list(launches[0]), next(iter(launches[0]))
    turns = {name: [turn for launch in launches for turn in launch[name]] for name in names}
    disturbed_turns = {name: _disturbed(of_variant) for name, of_variant in turns.items()}
    seconds = {
        name: sum(int(turn.nanoseconds.sum()) for turn in of_variant) / 1e9 for name, of_variant in turns.items()
    }
    disturbed, uneven = np.logical_or.reduce(list(disturbed_turns.values())), _uneven(disturbed_turns, seconds)
    share = float(disturbed.mean())
    all_rounds = [np.ones(len(launch[first]), dtype=bool) for launch in launches]
    if uneven or not 0 < share <= 1 - _LEAST:
        return Contention(share, False, uneven=uneven), all_rounds
    kept = np.split(~disturbed, np.cumsum([len(launch[first]) for launch in launches])[:-1])
    counted = [rounds if rounds.sum() >= fewest else np.zeros_like(rounds) for rounds in kept]
    if sum(rounds.any() for rounds in counted) < min(2, len(launches)):
        return Contention(share, False), all_rounds
    return Contention(share, True, sum(not rounds.any() for rounds in counted)), counted


def _disturbed(turns: Sequence[Turn]) -> NDArray[np.bool_]:
    """Which turns of a variant were disturbed, `(turns,)`."""
    shares = np.array([turn.processor / max(1, turn.nanoseconds.sum()) for turn in turns])
    preempted = np.array([turn.preempted > 0 for turn in turns])
    usual = np.percentile(shares, 75)  # the share of an undisturbed turn, even where more than half are disturbed
    disturbed: NDArray[np.bool_] = preempted & (shares < (1 - LOST) * usual)
    return disturbed


def _uneven(disturbed: Mapping[str, NDArray[np.bool_]], seconds: Mapping[str, float]) -> str | None:
    """The variant that was disturbed far more often than another in the same rounds, for the time of its turns."""
    for name, turns in disturbed.items():
        for other, other_turns in disturbed.items():
            alone = int((turns & ~other_turns).sum())
            expected = int((other_turns & ~turns).sum()) * seconds[name] / max(seconds[other], 1e-9)
            if alone > max(_UNEVEN * expected + _BY_CHANCE, _MATTERS * len(turns)):
                return name
    return None
