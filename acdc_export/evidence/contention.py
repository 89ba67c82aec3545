"""Which rounds another process disturbed: told by the processor time that the workers lost in them.

A process that gets onto one of the cores stretches a run of some milliseconds to several times that, in one variant or the
other. Alternation does not cancel what lasts no longer than a turn; but a run tells it of itself. Undisturbed, the
threads of a runtime get the cores for a share of the time that stays the same from turn to turn. A turn whose share is
clearly below that of its variant, and in which a thread had to leave its core, was disturbed, and its whole round is left
out: for all variants, so that none is favoured.

What an variant does to itself has to count. So nothing is left out where one variant is hit far more often than another, for
the time that they had: a third party that comes and goes would hit both. (One that stays on a core for good may do so
too, by where it puts an variant's threads at each launch. Then as well no median of what is left would be fair.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engine import Turn

LOST = 0.1
"""From which loss on, of the processor time that an variant usually gets, a turn was disturbed."""

_LEAST = 0.25  # of the rounds have to be left: where nearly all are disturbed, that is how the machine is
_UNEVEN, _BY_CHANCE = 3.0, 10  # times as often as the other variant, and in so many turns more
_MATTERS = 0.05  # of an variant's turns; a median hardly feels fewer


@dataclass(frozen=True)
class Contention:
    """How much of a measurement was disturbed."""

    disturbed: float  # share of the rounds, 0 to 1
    left_out: bool
    launches: int = 0  # that were left out as a whole, since too few of their rounds were undisturbed
    uneven: str | None = None  # the variant that was hit far more often than another, by itself perhaps


def find(launches: Sequence[Mapping[str, Sequence[Turn]]], fewest: int) -> tuple[Contention, list[NDArray[np.bool_]]]:
    """What was disturbed, and for each launch which of its rounds count; shape `(rounds,)`.

    In a launch of which fewer than `fewest` rounds are left, none counts.
    """
    if not launches:
        return Contention(0.0, False), []
    names, first = list(launches[0]), next(iter(launches[0]))
    turns = {name: [turn for launch in launches for turn in launch[name]] for name in names}
    hit = {name: _hit(taken) for name, taken in turns.items()}
    seconds = {name: sum(int(turn.nanoseconds.sum()) for turn in taken) / 1e9 for name, taken in turns.items()}
    disturbed, uneven = np.logical_or.reduce(list(hit.values())), _uneven(hit, seconds)
    share = float(disturbed.mean())
    everything = [np.ones(len(launch[first]), dtype=bool) for launch in launches]
    if uneven or not 0 < share <= 1 - _LEAST:
        return Contention(share, False, uneven=uneven), everything
    kept = np.split(~disturbed, np.cumsum([len(launch[first]) for launch in launches])[:-1])
    counted = [rounds if rounds.sum() >= fewest else np.zeros_like(rounds) for rounds in kept]
    if sum(rounds.any() for rounds in counted) < min(2, len(launches)):
        return Contention(share, False), everything
    return Contention(share, True, sum(not rounds.any() for rounds in counted)), counted


def _hit(turns: Sequence[Turn]) -> NDArray[np.bool_]:
    """Which turns of an variant were disturbed."""
    shares = np.array([turn.processor / max(1, turn.nanoseconds.sum()) for turn in turns])
    preempted = np.array([turn.preempted > 0 for turn in turns])
    usual = np.percentile(shares, 75)  # an undisturbed one's, even where more than half are disturbed
    found: NDArray[np.bool_] = preempted & (shares < (1 - LOST) * usual)
    return found


def _uneven(hit: Mapping[str, NDArray[np.bool_]], seconds: Mapping[str, float]) -> str | None:
    """The variant that was hit far more often than another in the same rounds, for the time that its turns took."""
    for name, turns in hit.items():
        for other, others in hit.items():
            alone = int((turns & ~others).sum())
            usual = int((others & ~turns).sum()) * seconds[name] / max(seconds[other], 1e-9)
            if alone > max(_UNEVEN * usual + _BY_CHANCE, _MATTERS * len(turns)):
                return name
    return None
