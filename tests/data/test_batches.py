"""Batches as somebody's loader gives them: converted without loss, or refused with what to do."""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from acdc_export.data.batches import convert
from acdc_export.errors import UsageError

torch = pytest.importorskip("torch")

X = np.array([[0.5, -1.0, 0.0], [2.0, 0.0, 4.0]], np.float32)  # exact in every type of floats
Y = np.array([1, 0])
T = torch.from_numpy(X)

Named = namedtuple("Named", "image label")


@dataclass
class Sample:
    image: Any
    target: Any


@pytest.mark.parametrize(
    "x",
    [
        T.bfloat16(),
        T.half(),
        T.double(),
        T.clone().requires_grad_(),
        T.to_sparse(),
        T.half().to_sparse(),
        T.bfloat16().to_sparse().requires_grad_(),
        torch._neg_view(-T),
        torch.nn.Parameter(T.clone()),
        X.astype(np.float16),
        np.asfortranarray(X),
        X.tolist(),
        list(T),
        [row.bfloat16() for row in T],
        np.array([*X], dtype=object),
    ],
)
def test_inputs_of_any_type_and_layout_are_read_without_loss(x: Any) -> None:
    inputs, labels = convert((x, torch.from_numpy(Y)), "some")
    np.testing.assert_array_equal(inputs, X)
    assert (inputs.dtype, labels.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    "batch",
    [
        {"image": T.bfloat16(), "label": torch.from_numpy(Y)},
        {"image": X, "Labels": Y[:, None]},
        Named(T, torch.from_numpy(Y)),
        Sample(X, Y.astype(np.uint8)),
        ({"image": T}, Y.tolist()),
    ],
)
def test_batches_with_names(batch: Any) -> None:
    inputs, labels = convert(batch, "some", {"image": 2})
    np.testing.assert_array_equal(inputs["image"], X)
    np.testing.assert_array_equal(labels, Y)


def test_fields_that_are_no_inputs_are_left_out() -> None:
    inputs, _ = convert({"image": X, "mask": X, "labels": Y}, "some", {"image": 2})
    assert [*inputs] == ["image"]


@pytest.mark.parametrize("x", [(X, X[:, :1]), [T, T[:, :1].bfloat16()], {"b": X[:, :1], "a": X}])
def test_several_inputs_by_order_or_name(x: Any) -> None:
    inputs, _ = convert((x, Y), "some", {"a": 2, "b": 2})
    np.testing.assert_array_equal(inputs["a"], X)
    np.testing.assert_array_equal(inputs["b"], X[:, :1])


def test_a_single_sample_is_a_batch_of_one() -> None:
    inputs, labels = convert((X[0], torch.tensor(1)), "some", {"x": 2})
    assert (inputs.shape, labels.tolist()) == ((1, 3), [1])


@pytest.mark.parametrize(
    ("batch", "message", "remedy"),
    [
        (([[1.0, 2.0], [3.0]], Y), "different lengths", "Pad or cut"),
        (([T[0], T[1, :2]], Y), "different lengths", "Pad or cut"),
        ((torch.nested.nested_tensor([T[0], T[1, :2]], layout=torch.jagged), Y), "different lengths", "Pad or cut"),
        ((torch.empty(2, 3, device="meta"), Y), "device 'meta'", "hold the samples"),
        ((T * float("nan"), Y), "6 values of x are NaN", "repair"),
        ((np.float64([[1e300], [0]]), Y), "infinite", "repair"),
        ((np.array([["a"], ["b"]]), Y), "not numbers", "arrays of numbers"),
        ((X + 1j, Y), "not numbers", "arrays of numbers"),
        ((X, np.eye(2)[Y]), "one class index", "argmax"),
        ((X, Y.astype(np.float32)), "one class index", "astype"),
        ((X, Y - 1), "one class index", "-1 to 0"),
        ((X, ["cat", "dog"]), "not numbers", "from 0"),
        ((X, Y[:1]), "2 rows, and there are 1 labels", "as many labels"),
        ({"image": X}, "none of it is called labels", "labels"),
        ({"image": X, "label": Y, "target": Y}, "label and target", "labels"),
        ((X, Y, Y), "tuples of 3", r"yield \(x, y\)"),
        (T, "Tensor, not pairs", r"\(x, y\)"),
        (None, "NoneType, not pairs", r"\(x, y\)"),
    ],
)
def test_others_are_refused_in_two_lines(batch: Any, message: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        convert(batch, "some")
    assert caught.value.message.startswith("some")
    assert "\n" not in caught.value.message + caught.value.remedy
    assert re.search(remedy, caught.value.remedy)
