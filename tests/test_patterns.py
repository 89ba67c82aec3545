"""The kinds of sparsity: their names, what fulfils what, and the reference masks by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc_export import patterns
from acdc_export.errors import UsageError
from acdc_export.patterns import FORMS, PatternKind, counted, parse, reference_masks, satisfies


def test_names_and_geometry() -> None:
    assert parse("unstructured") == PatternKind("unstructured", 1)
    assert parse("block8") == PatternKind("block8", 8)
    assert parse("2:4") == PatternKind("2:4", 4, 2)
    assert [parse(form.example).name for form in FORMS] == [form.example for form in FORMS]
    assert [parse(name).sparsity for name in ("unstructured", "block4", "1:4")] == [None, None, 0.75]
    assert parse("2:4").ineligible(8) is None
    assert parse("2:4").ineligible(10) == "10 input channels a filter are no multiple of 4"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blok4", "no pattern 'blok4' (did you mean 'block4'?)"),
        ("unstructred", "did you mean 'unstructured'?"),
        ("4:2", "4 of every 2 weights can't be kept"),
        ("0:4", "0 of every 4"),
        ("block1", "its blocks hold 1 weight."),
        ("2:4 ", "did you mean '2:4'?"),
        ("", "no pattern ''"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(name)
    assert said in caught.value.message
    assert caught.value.remedy


def conforms(kind: PatternKind, alive: tuple[bool, ...]) -> bool:
    counts = kind.count_groups(np.array([alive]))
    return counts.state == "conformant"


@pytest.mark.parametrize("required", ["2:4", "1:4", "2:6", "block2", "block4", "unstructured"])
@pytest.mark.parametrize(
    "kind", ["1:2", "2:4", "1:4", "3:4", "2:3", "1:6", "3:6", "block2", "block4", "block6", "unstructured"]
)
def test_what_fulfils_what_is_what_every_mask_shows(kind: str, required: str) -> None:
    """A pattern fulfils another if each of its masks does, on as many channels as both can divide."""
    if required == "unstructured":
        assert satisfies(kind, required)
        return
    given, wanted = parse(kind), parse(required)
    masks = [mask for mask in itertools.product([False, True], repeat=12) if conforms(given, mask)]
    assert satisfies(kind, required) == all(conforms(wanted, mask) for mask in masks)


def test_a_pattern_of_a_users_own_fulfils_no_other() -> None:
    assert satisfies("mine", "unstructured")
    assert not satisfies("mine", "2:4")
    with pytest.raises(UsageError, match="no pattern 'mine'"):
        satisfies("2:4", "mine")


def test_what_is_counted() -> None:
    def names(*given: str, own: str = "") -> list[str]:
        return [kind.name for kind in counted(given, own)]

    assert names() == names(own="unstructured") == names(own="mine") == ["2:4", "block4"]
    assert names(own="1:4") == ["1:4", "2:4", "block4"]
    assert names(own="block4") == ["block4", "2:4"]
    assert names("4:8", "block8", own="2:4") == ["2:4", "4:8", "block8"]
    with pytest.raises(UsageError, match="no pattern"):
        names("four")


def test_masks_by_hand() -> None:
    weights = {"a": np.array([[1.0, -2.0, 3.0, 1.0]]), "b": np.array([[1.0, 5.0, -0.0, 0.0]])}
    masks = reference_masks(parse("unstructured"), weights, 0.5)
    assert masks["a"].tolist() == [[False, True, True, False]]  # of three ones, the first two
    assert masks["b"].tolist() == [[True, True, False, False]]
    masks = reference_masks(parse("unstructured"), weights, 0.5, "uniform")
    assert masks["b"].tolist() == [[True, True, False, False]]
    assert masks["a"].tolist() == [[False, True, True, False]]
    masks = reference_masks(parse("block2"), weights, 0.3)  # two of four blocks: 3, 4, 6 and 0
    assert [masks[name].tolist() for name in "ab"] == [[[False, False, True, True]], [[True, True, False, False]]]
    masks = reference_masks(parse("2:4"), weights)
    assert masks["a"].tolist() == [[False, True, True, False]]
    assert masks["b"].tolist() == [[True, True, False, False]]


def test_masks_that_there_are_none_of() -> None:
    weight = {"w": np.ones((2, 4), dtype=np.float32)}
    for kind, sparsity, said in (
        ("block4", None, "needs a sparsity"),
        ("2:4", 0.5, "of its own"),
        ("unstructured", 1.0, "not between 0 and 1"),
        ("block3", 0.5, "4 input channels a filter are no multiple of 3"),
        ("3:5", None, "no multiple of 5"),
    ):
        with pytest.raises(UsageError, match=said):
            reference_masks(parse(kind), weight, sparsity)
    with pytest.raises(UsageError, match="NaN or infinite"):
        reference_masks(parse("2:4"), {"w": weight["w"] * np.nan})


@given(
    name=st.sampled_from(["unstructured", "block3", "2:4", "1:5", "block8"]),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([(), (2,), (3, 2)]),
    sparsity=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_masked_weights_conform(name: str, groups: int, kernel: tuple[int, ...], sparsity: float, seed: int) -> None:
    kind = parse(name)
    weight = np.random.default_rng(seed).normal(size=(3, groups * kind.size, *kernel))
    (mask,) = reference_masks(kind, {"w": weight}, None if kind.kept else sparsity).values()
    counts = kind.count_groups(weight * mask)
    assert counts.state == "conformant"
    if kind.kept is None:
        assert counts.zero == patterns.zeros_of(sparsity, counts.groups)
    else:
        assert mask.sum() == kind.kept * counts.groups
