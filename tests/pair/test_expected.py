"""What samples have to be like for a pair: scaled as its inputs, and of its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from acdc_export.data import Data, load
from acdc_export.errors import UsageError
from acdc_export.pair import Expected, TensorSpec, named

RANDOM = np.random.default_rng(5)
UNIT = RANDOM.random((64, 3, 8, 8), dtype=np.float32)  # as decoders give images
NORMAL = (UNIT - 0.5) / 0.25
IDS = RANDOM.integers(0, 30_000, (64, 16))


def expected(known: np.ndarray, classes: tuple[str, ...] = (), width: int = 4) -> Expected:
    return Expected(
        "the pair",
        (TensorSpec("input", str(known.dtype), ("batch", *known.shape[1:])),),
        TensorSpec("logits", "float32", ("batch", width)),
        {"input": known},
        classes,
    )


def read(x: np.ndarray, known: np.ndarray, batch: int = 8) -> None:
    data = Data.of([(x, np.zeros(len(x), int))])
    for _ in named(data, expected(known), batch):
        pass


@pytest.mark.parametrize(
    ("x", "known"),
    [
        (np.rint(UNIT * 255).astype(np.uint8), NORMAL),
        (UNIT * 255, NORMAL),
        (UNIT, NORMAL),
        (NORMAL, UNIT),
        (UNIT * 255, UNIT),
        (UNIT, UNIT * 255),
        (UNIT / 255, UNIT),
        (np.zeros_like(UNIT), NORMAL),
        (NORMAL + np.float32([0, 0, 9])[:, None, None], NORMAL),  # a single channel
        (IDS - 20_000, IDS),
    ],
)
@pytest.mark.parametrize("batch", [1, 64])
def test_samples_of_another_scale_are_refused(x: np.ndarray, known: np.ndarray, batch: int) -> None:
    with pytest.raises(UsageError, match=r"input from .* the inputs that the pair knows run from"):
        read(x, known, batch)


@pytest.mark.parametrize(
    ("x", "known"),
    [
        (NORMAL[:1], NORMAL),
        (UNIT * 0.5, UNIT),  # darker
        (NORMAL * 1.5 + 0.5, NORMAL),
        (np.sort(IDS, axis=0)[:32], IDS),
        (np.ones((8, 16), np.int64), (IDS > 3000).astype(np.int64)),  # a mask without padding
        (NORMAL, np.zeros_like(NORMAL)),  # nothing is known
    ],
)
def test_honest_samples_pass(x: np.ndarray, known: np.ndarray) -> None:
    read(x, known)


def test_the_digits_pass_by_any_64_of_them() -> None:
    pytest.importorskip("sklearn")
    (known, _), *_ = load("digits:train").batches(64)
    for data in (load("digits:test"), load("digits:test").sample(16), load("digits:train").sample(128)):
        assert sum(len(y) for _, y in named(data, replace(expected(known), labelled=False), 32)) == data.count


class Folder(list[Any]):
    """Batches with classes, as a data set of torchvision has them."""

    def __init__(self, classes: list[str]) -> None:
        super().__init__([(NORMAL, np.arange(64) % len(classes))])
        self.classes = classes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ant", "cat", "dog"], "lacks bee"),
        (["ant", "bee", "cat"], "lacks dog"),
        (["ant", "bee", "cat", "dog", "elk"], "has elk, which the network doesn't know"),
        (["ant", "bee", "cow", "dog"], "lacks cat and has cow"),
        (["bee", "ant", "cat", "dog"], "another order .* 0 is bee, not ant"),
    ],
)
def test_other_classes_are_refused(given: list[str], message: str) -> None:
    wanted = expected(NORMAL, ("ant", "bee", "cat", "dog"))
    with pytest.raises(UsageError, match=message):
        next(named(Data.of(Folder(given)), wanted, 8))
    assert next(named(Data.of(Folder(given)), replace(wanted, labelled=False), 8))  # calibration uses no labels


def test_a_listing_of_fewer_classes_than_logits_is_refused_without_names() -> None:
    with pytest.raises(UsageError, match=r"has 3 classes \(ant, cat, dog\), and the network of the pair tells 4 apart"):
        next(named(Data.of(Folder(["ant", "cat", "dog"])), expected(NORMAL), 8))


def test_the_same_classes_and_data_without_names_pass() -> None:
    names = ("ant", "bee", "cat", "dog")
    assert next(named(Data.of(Folder([*names])), expected(NORMAL, names), 8))
    assert next(named(Data.of(Folder([*names])), expected(NORMAL), 8))
    assert next(named(Data.of([(NORMAL, np.zeros(64, int))]), expected(NORMAL, names), 8))
