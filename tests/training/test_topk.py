"""Selection agrees with the plainest way to do it: a stable sort of all magnitudes, laid end to end."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from acdc_export.errors import TrainingError, UsageError
from acdc_export.training.topk import keep_largest

# Few different values, so that ties are common: zeros of both signs, denormals, the extremes, neighbours in
# the last bit, and neighbours across the boundary between the upper and the lower 16 bits.
AWKWARD = [0.0, -0.0, 1.0, -1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-45, -3e-45, 3.4028235e38, 0.5, -0.5]
AWKWARD += [np.uint32(bits).view(np.float32) for bits in (0x3F80FFFF, 0x3F810000, 0x3F810001, 0x0000FFFF, 0x00010000)]
VALUES = st.sampled_from([np.float32(value) for value in AWKWARD]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
TENSORS = st.lists(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=4, max_side=5), elements=VALUES), min_size=1, max_size=4
)


def sorted_masks(tensors, zeros):
    flat = np.concatenate([np.abs(tensor).ravel() for tensor in tensors])
    keep = np.ones(len(flat), dtype=bool)
    keep[np.argsort(flat, kind="stable")[:zeros]] = False
    ends = np.cumsum([tensor.size for tensor in tensors])[:-1]
    return [mask.reshape(tensor.shape) for mask, tensor in zip(np.split(keep, ends), tensors, strict=True)]


def assert_selects(tensors, zeros, weights):
    masks = keep_largest({str(index): weight for index, weight in enumerate(weights)}, zeros)
    for mask, expected in zip(masks.values(), sorted_masks(tensors, zeros), strict=True):
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), expected)
    assert sum(int((~mask).sum()) for mask in masks.values()) == zeros


@given(TENSORS, st.floats(0, 1))
def test_selects_as_a_stable_sort_does(tensors, share):
    zeros = round(share * sum(tensor.size for tensor in tensors))
    assert_selects(tensors, zeros, [torch.from_numpy(tensor) for tensor in tensors])


@given(st.lists(st.sampled_from([0.0, -0.0, 2.0]), min_size=4, max_size=4), st.integers(0, 4))
def test_ties_go_by_logical_position_whatever_the_memory_layout(values, zeros):
    tensor = np.array(values, dtype=np.float32).reshape(1, 2, 2, 1)
    weight = torch.from_numpy(tensor).repeat(2, 1, 1, 3)
    assert_selects([weight.numpy()], 6 * zeros, [weight.to(memory_format=torch.channels_last)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_floats_are_widened_exactly(dtype):
    weight = torch.randn(300, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_selects([weight.float().numpy()], 123, [weight])


def test_large_random_tensors():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) for size in ((64, 64, 3, 3), (10, 128), (7,))]
    assert_selects([weight.numpy() for weight in weights], 30_000, weights)


def test_the_weights_are_not_changed():
    weight = torch.tensor([-1.0, 2.0, -0.0])
    keep_largest({"w": weight}, 2)
    assert torch.equal(weight, torch.tensor([-1.0, 2.0, 0.0]))


def test_what_can_not_be_ranked_is_refused():
    with pytest.raises(UsageError, match="w is float64"):
        keep_largest({"w": torch.ones(3, dtype=torch.float64)}, 1)
    with pytest.raises(UsageError, match="4 of 3"):
        keep_largest({"w": torch.ones(3)}, 4)
    for value in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="w holds weights that are NaN or infinite"):
            keep_largest({"w": torch.tensor([1.0, value])}, 1)
