"""When an accuracy is odd enough to say so."""

from __future__ import annotations

import numpy as np
import pytest

from acdc_export.evidence.accuracy import Accuracy, _count, doubts


def judged(right: float, samples: int = 1000, classes: int = 10) -> Accuracy:
    """Of samples of all classes, of which both halves get a share right."""
    labels = np.arange(samples) % classes
    given = np.where(np.arange(samples) < right * samples, labels, (labels + 1) % classes)
    return _count(labels, given, given, 0.05)


@pytest.mark.parametrize("name", ["accuracy", "acc", "val/top1", "Acc-1"])
@pytest.mark.parametrize("recorded", [0.97, 97.0])
def test_far_from_the_record(name: str, recorded: float) -> None:
    notes = doubts(judged(0.4), {"sparse half": {"loss": 0.1, name: recorded}, "dense twin": {}})
    assert len(notes) == 1
    assert "The sparse half gets 40.0 % right, far from the 97.0 %" in notes[0]


@pytest.mark.parametrize(("right", "recorded"), [(0.97, {"accuracy": 0.98}), (0.4, {"loss": 0.9}), (0.9, {})])
def test_near_the_record_or_without_one(right: float, recorded: dict[str, float]) -> None:
    assert doubts(judged(right), {"sparse half": recorded, "dense twin": recorded}) == []


@pytest.mark.parametrize(("right", "near"), [(0.0, True), (0.1, True), (0.11, True), (0.3, False)])
def test_near_chance(right: float, near: bool) -> None:
    notes = doubts(judged(right), {"sparse half": {}, "dense twin": {}})
    assert ["Near chance: the sparse half" in note and "the dense twin" in note for note in notes] == [True] * near


def test_chance_is_the_commonest_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    accuracy = _count(labels, np.zeros(100, int), labels, 0.05)
    (note,) = doubts(accuracy, {"new": {}, "old": {}})
    assert "the new (90.0 %) can't be told from always answering class 0, which is right for 90.0 %" in note
