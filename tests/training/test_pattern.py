import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from acdc_export import patterns
from acdc_export.errors import TrainingError, UsageError
from acdc_export.training import NM, Blocks, Unstructured
from acdc_export.training.pattern import collapsed, of_kind


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 8, 3)), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def test_layers_are_the_weights_of_convolutions_and_linears():
    model = network()
    layers = Unstructured(0.5).select(model).weights
    assert list(layers) == ["0.weight", "3.0.weight", "5.weight"]
    assert layers["3.0.weight"] is model[3][0].weight
    assert set(layers) <= set(model.state_dict())
    assert list(Unstructured(0.5).select(nn.Linear(9, 9)).weights) == ["weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [(("0",), ["3.0.weight", "5.weight"]), (("3.*", "5"), ["0.weight"]), ("5", ["0.weight", "3.0.weight"])],
)
def test_exclusions_go_by_module_name(exclude, left):
    assert list(Unstructured(0.5, exclude=exclude).select(network()).weights) == left


@pytest.mark.parametrize(
    ("sparsity", "total", "zeros"),
    [
        (0.9, 1000, 900),
        (0.9, 1001, 901),
        (0.7, 10, 7),
        (0.1, 10, 1),
        (0.07, 100, 7),
        (0.55, 100, 55),
        (0.5, 3, 2),
        (1e-9, 10, 1),
    ],
)
def test_zeros_are_counted_in_decimal(sparsity, total, zeros):
    # In floats 0.07 * 100 is 7.000000000000001, and 0.55 * 100 is 55.00000000000001.
    (mask,) = Unstructured(sparsity).masks({"weight": torch.arange(1.0, total + 1)}).values()
    assert int((~mask).sum()) == zeros


def test_uniform_gives_each_layer_its_share_and_global_the_sum():
    torch.manual_seed(0)
    weights = Unstructured(0.5).select(network()).weights
    with torch.no_grad():
        weights["5.weight"].mul_(100)  # the largest ones, all in one layer
    uniform = {name: int((~mask).sum()) for name, mask in Unstructured(0.6, "uniform").masks(weights).items()}
    assert uniform == {"0.weight": 22, "3.0.weight": 173, "5.weight": 192}
    together = {name: int((~mask).sum()) for name, mask in Unstructured(0.4).masks(weights).items()}
    assert sum(together.values()) == 258  # ceil(0.4 * 644)
    assert together["5.weight"] < 10


def test_bad_patterns_are_refused():
    for sparsity in (0, 1, -0.1, 1.5, 90, float("nan")):
        with pytest.raises(UsageError, match="not between 0 and 1"):
            Unstructured(sparsity)
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        Unstructured(0.5, "unifrom")  # type: ignore[arg-type]


def test_an_exclusion_that_matches_nothing_is_refused():
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(1, 4, 3)))
    model.add_module("head", nn.Linear(4, 4))
    with pytest.raises(UsageError, match=r"'haed' excludes nothing \(did you mean 'head'\?\)"):
        Unstructured(0.5, exclude=("haed",)).select(model)
    with pytest.raises(UsageError, match=r"did you mean 'stem\.0'"):
        Unstructured(0.5, exclude=("stem",)).select(model)  # the container, which has no weight of its own


def test_models_that_can_not_be_pruned_are_refused():
    with pytest.raises(UsageError, match="no weights to prune"):
        Unstructured(0.5).select(nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="no weights to prune"):
        Unstructured(0.5, exclude=("*",)).select(network())
    with pytest.raises(UsageError, match="has no shape yet"):
        Unstructured(0.5).select(nn.LazyLinear(3))
    with pytest.raises(UsageError, match="parametrization"):
        Unstructured(0.5).select(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match=r"weight is float64"):
        Unstructured(0.5).select(nn.Linear(4, 4).double())
    with pytest.raises(UsageError, match="none would be left"):
        Unstructured(0.9, "uniform").select(nn.Sequential(nn.Linear(64, 64), nn.Linear(5, 1)))


def test_shared_weights_are_refused_unless_excluded():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(UsageError, match=r"0\.weight and 2\.weight are one parameter"):
        Unstructured(0.5).select(tied)
    assert list(Unstructured(0.5, exclude=("0", "2")).select(tied).weights) == ["1.weight"]

    embedding = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    embedding[1].weight = embedding[0].weight
    with pytest.raises(UsageError, match="one parameter"):
        Unstructured(0.5).select(embedding)

    layer = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="one parameter"):
        Unstructured(0.5).select(nn.Sequential(layer, layer))


def test_a_layer_may_lose_every_weight_unless_that_is_to_be_refused():
    weights = {"a": torch.full((4, 4), 1e-6), "b": torch.randn(100, 4)}
    for pattern in (Unstructured(0.5), Blocks(0.5)):
        masks = pattern.masks(weights)
        assert collapsed(masks) == ["a"]
        assert sum(int((~mask).sum()) for mask in masks.values()) == 208
        with pytest.raises(TrainingError, match="Every weight of a would be zero"):
            replace(pattern, layer_collapse="refuse").masks(weights)
    with pytest.raises(UsageError, match=r"layer_collapse 'refused' \(did you mean 'refuse'\?\)"):
        Unstructured(0.5, layer_collapse="refused")  # type: ignore[arg-type]


def test_layers_are_excluded_by_type_and_size_and_say_so():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv1d(8, 8, 3), nn.Linear(8, 2))
    selection = Unstructured(0.5, exclude="1", exclude_types=("depthwise", "Conv1d")).select(model)
    assert list(selection.weights) == ["3.weight"]
    assert selection.dense == {"0": "excluded as depthwise", "1": "excluded by '1'", "2": "excluded as Conv1d"}
    selection = Unstructured(0.5, exclude_below=33).select(model)
    assert list(selection.weights) == ["0.weight", "2.weight"]  # a depthwise convolution is pruned like any other
    assert selection.dense == {"1": "32 weights, fewer than 33", "3": "16 weights, fewer than 33"}
    with pytest.raises(UsageError, match=r"'linear' \(did you mean 'Linear'\?\)"):
        Unstructured(0.5, exclude_types="linear")


def test_overrides_give_single_layers_a_share_of_their_own():
    torch.manual_seed(0)
    weights = Unstructured(0.5).select(network()).weights
    pattern = Unstructured(0.5, overrides={"5": 0.9, "*": 0.25})
    zeros = {name: int((~mask).sum()) for name, mask in pattern.masks(weights).items()}
    assert zeros == {"0.weight": 9, "3.0.weight": 72, "5.weight": 288}
    pattern = Unstructured(0.5, overrides={"0": 0.1})  # the others are ranked together
    zeros = {name: int((~mask).sum()) for name, mask in pattern.masks(weights).items()}
    assert zeros["0.weight"] == 4
    assert zeros["3.0.weight"] + zeros["5.weight"] == 304
    with pytest.raises(UsageError, match=r"'6' overrides nothing"):
        Unstructured(0.5, overrides={"6": 0.1}).select(network())
    with pytest.raises(UsageError, match="not between 0 and 1"):
        Unstructured(0.5, overrides={"0": 1.0})


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (3,), (2, 3), (1, 2, 2)]))


def drawn(shape, seed, ties):
    """Random weights, with many equal magnitudes where `ties`."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (weight * 2).round() / 2 if ties else weight


@given(SHAPES, st.integers(2, 6), st.data(), st.integers(0, 99), st.booleans())
def test_nm_keeps_the_n_largest_of_every_m_input_channels(shape, m, data, seed, ties):
    n = data.draw(st.integers(1, m - 1))
    filters, groups, kernel = shape
    weight = drawn((filters, groups * m, *kernel), seed, ties)
    (mask,) = NM(n, m).masks({"weight": weight}).values()
    assert mask.shape == weight.shape
    for filter_, group, *place in itertools.product(*map(range, (filters, groups, *kernel))):
        at = (filter_, slice(group * m, (group + 1) * m), *place)
        magnitudes, kept = weight[at].abs().tolist(), mask[at].tolist()
        ranked = sorted(range(m), key=lambda index: (magnitudes[index], index))  # of equal ones, the first goes
        assert [index for index in range(m) if kept[index]] == sorted(ranked[m - n :])


@given(SHAPES, st.integers(2, 5), st.floats(0.05, 0.9), st.integers(0, 99), st.booleans())
def test_blocks_live_or_are_zero_as_a_whole_by_the_sum_of_their_magnitudes(shape, size, sparsity, seed, ties):
    filters, groups, kernel = shape
    weight = drawn((filters, groups * size, *kernel), seed, ties)
    blocks = filters * groups * math.prod(kernel)
    zeros = math.ceil(Fraction(repr(sparsity)) * blocks)
    assume(zeros < blocks)
    (mask,) = Blocks(sparsity, size=size).masks({"weight": weight}).values()
    parts = mask.unflatten(1, (groups, size))
    assert torch.equal(parts.all(2), parts.any(2))
    assert int((~parts.all(2)).sum()) == zeros
    sums = weight.double().abs().unflatten(1, (groups, size)).sum(2)
    assert sums[parts.all(2)].min() >= sums[~parts.all(2)].max() - 1e-6


def test_a_pattern_of_groups_leaves_dense_what_has_none_and_says_so():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1),
        nn.Linear(10, 2),
    )  # fmt: skip
    for pattern in (NM(2, 4), Blocks(0.5), Blocks(0.5, "uniform")):
        selection = pattern.select(model)
        assert list(selection.weights) == ["2.weight", "3.weight"]
        assert selection.dense == {
            "0": "3 input channels a filter are no multiple of 4",
            "1": "1 input channels a filter are no multiple of 4",
            "4": "10 input channels a filter are no multiple of 4",
        }
        masks = pattern.masks(selection.weights)
        assert sum(int(mask.sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2
    with pytest.raises(UsageError, match="its layers stay dense .0: 3 input channels"):
        NM(2, 4).select(model[:2])


def test_patterns_are_named_as_pipelines_name_them():
    assert of_kind("2:4") == NM(2, 4)
    assert of_kind("block4", 0.9, "uniform", exclude=("head",)) == Blocks(0.9, "uniform", exclude=("head",))
    assert of_kind("unstructured", 0.9) == Unstructured(0.9)
    assert [(pattern.kind, pattern.sparsity) for pattern in (NM(1, 4), Blocks(0.9, size=8), Unstructured(0.5))] == [
        ("1:4", 0.75), ("block8", 0.9), ("unstructured", 0.5),
    ]  # fmt: skip
    for kind in ("4:2", "4:4", "0:4"):
        with pytest.raises(UsageError, match="can't be kept"):
            of_kind(kind)
    with pytest.raises(UsageError, match="There is no pattern 'banded'"):
        of_kind("banded", 0.9)
    with pytest.raises(UsageError, match="block4 needs a sparsity"):
        of_kind("block4")
    with pytest.raises(UsageError, match="size of 2 or more"):
        of_kind("block1", 0.9)
    with pytest.raises(TrainingError, match="NaN or infinite"):
        NM(2, 4).masks({"weight": torch.full((4, 4), float("nan"))})


@given(
    st.sampled_from(["unstructured", "block2", "block4", "block5", "2:4", "1:4", "3:8", "1:2"]),
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([(), (3,), (2, 3)])), min_size=1, max_size=3
    ),
    st.floats(0.05, 0.9),
    st.sampled_from(["global", "uniform"]),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16]),
)
def test_the_fast_selection_equals_the_reference(kind, shapes, sparsity, scope, seed, ties, channels_last, dtype):
    known = patterns.parse(kind)
    weights = {}
    for index, (filters, groups, kernel) in enumerate(shapes):
        weight = drawn((filters, groups * known.size, *kernel), seed + index, ties).to(dtype)
        if channels_last and weight.ndim == 4:
            weight = weight.to(memory_format=torch.channels_last)
        weights[f"{index}.weight"] = weight
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    chosen = None if known.kept else sparsity
    expected = patterns.reference_masks(known, arrays, chosen, scope)
    masks = of_kind(kind, chosen, scope).masks(weights)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask.numpy(), expected[name])
