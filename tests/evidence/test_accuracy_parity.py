"""Accuracy on the same samples, parity with the reference, and batches that don't come out even."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.errors import UsageError
from acdc_export.evidence import accuracy, batches, parity

from .fakes import Fake


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes.astype(int)[:, 0]]


def judge(labels: np.ndarray, sparse: list[int], dense: list[int]) -> accuracy.Accuracy:
    """Both halves say what they are told: the inputs are row numbers."""
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    engines = [
        Fake(partial(lambda said, rows: one_hot(said[rows.astype(int)]), np.array(said))) for said in (sparse, dense)
    ]
    data = [({"x": x[:4]}, labels[:4]), ({"x": x[4:]}, labels[4:])]
    return accuracy.measure(engines[0], engines[1], data, output="logits", batch_size=4)


def test_counts() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = judge(labels, sparse=[0, 1, 1, 1, 0, 2], dense=[0, 0, 1, 0, 0, 2])
    assert (found.samples, found.only_sparse, found.only_dense) == (6, 1, 1)
    assert (found.sparse.value, found.dense.value) == (pytest.approx(400 / 6), pytest.approx(400 / 6))
    assert found.sparse.low < 400 / 6 < found.sparse.high
    assert found.drop.value == 0
    assert found.agreement == pytest.approx(400 / 6)
    assert [(c.label, c.samples, c.sparse, c.dense) for c in found.classes] == [
        (0, 2, 1, 2),
        (1, 2, 2, 1),
        (2, 2, 1, 1),
    ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 1, 2, 3, 0]), "Labels run from 0 to 3, but the network knows classes 0 to 2"),
        (np.array([0, -1, 2, 1, 0]), "Labels run from -1"),
    ],
)
def test_labels_that_are_no_classes(labels: np.ndarray, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        judge(labels, [0] * 5, [0] * 5)


def test_nan_is_never_right() -> None:
    x = {"x": np.array([[0], [1], [0]], dtype=np.float32)}
    broken, sound = Fake(lambda rows: np.full((len(rows), 3), np.nan)), Fake(lambda rows: one_hot(rows))
    found = accuracy.measure(broken, sound, [(x, np.array([0, 1, 0]))], output="logits", batch_size=4)
    assert (found.sparse.value, found.dense.value) == (0.0, 100.0)


def test_labels_of_a_single_class_prove_nothing() -> None:
    with pytest.raises(UsageError, match="All 6 samples to be judged by are of class 1"):
        judge(np.ones(6, dtype=np.int64), [1] * 6, [1] * 6)


def test_intervals_are_as_sure_as_asked() -> None:
    x = np.arange(6, dtype=np.float32)[:, None] % 3
    data = [({"x": x}, np.array([0, 1, 2, 0, 1, 1]))]
    usual, surer = (
        accuracy.measure(Fake(one_hot), Fake(one_hot), data, output="logits", batch_size=4, alpha=alpha)
        for alpha in (0.05, 0.001)
    )
    for one, two in ((usual.sparse, surer.sparse), (usual.dense, surer.dense), (usual.drop, surer.drop)):
        assert two.low < one.low <= one.value <= one.high < two.high


def test_an_output_that_is_no_logits() -> None:
    x = {"x": np.zeros((3, 1), dtype=np.float32)}
    image = Fake(lambda rows: np.zeros((len(rows), 3, 8, 8)))
    with pytest.raises(UsageError, match=r"shape \(3, 3, 8, 8\)"):
        accuracy.measure(image, image, [(x, np.array([0, 0, 0]))], output="logits", batch_size=4)


def test_no_samples() -> None:
    with pytest.raises(UsageError, match="no samples"):
        accuracy.measure(Fake(), Fake(), [], output="logits", batch_size=4)


@given(rows=st.integers(1, 40), size=st.integers(1, 17))
def test_batches_that_do_not_come_out_even(rows: int, size: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)
    engine = Fake(lambda x: 2 * x)
    np.testing.assert_array_equal(batches.run(engine, {"x": x}, size)["logits"], 2 * x)
    assert set(engine.batches) == {size}  # the runtime never sees another size


def test_parity_shows_the_tolerance_it_needs() -> None:
    reference = np.array([[0.0, 99.0], [1.0, 0.0]])
    found = parity.compare(
        {"logits": reference + np.array([[0.002, 0.1], [0, 0]])}, {"logits": reference}, tolerance=1e-3
    )
    assert found.required == pytest.approx(0.002)  # 0.1 at 99 needs 0.001 only
    assert found.max_abs == pytest.approx(0.1)
    assert not found.ok
    assert found.top1_agreement == 1.0


@pytest.mark.parametrize("reference", [{}, {"logits": np.full((2, 2), np.nan)}])
def test_parity_with_no_reference_is_infinite(reference: dict[str, np.ndarray]) -> None:
    found = parity.compare({"logits": np.zeros((2, 2))}, reference, tolerance=1e9)
    assert found.required == math.inf


@pytest.mark.parametrize(
    "outputs",
    [{}, {"logits": np.zeros((3, 2))}, {"logits": np.full((2, 2), np.nan)}, {"logits": np.full((2, 2), np.inf)}],
)
def test_parity_of_no_answer_is_infinite(outputs: dict[str, np.ndarray]) -> None:
    found = parity.compare(outputs, {"logits": np.zeros((2, 2))}, tolerance=1e9)
    assert found.required == math.inf
    assert not found.ok
