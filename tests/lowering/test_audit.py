"""Zeros and the groups of patterns, against counts by loops."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc_export import lowering, patterns
from acdc_export.patterns import GroupCounts

from ..conftest import network, weights

KINDS = ("2:4", "block4", "1:2", "3:8", "block3", "unstructured")


def by_loops(weight: np.ndarray, inner: int, size: int) -> list[int]:
    """The non-zeros of every group of `size` neighbours along `inner`."""
    moved = np.moveaxis(weight, inner, -1)
    return [
        sum(1 for value in moved[index][start : start + size] if value != 0)
        for index in itertools.product(*(range(length) for length in moved.shape[:-1]))
        for start in range(0, moved.shape[-1], size)
    ]


@given(
    shape=st.sampled_from([(3, 8, 3, 3), (2, 4), (8, 8), (5, 12, 1), (24, 6)]),
    inner=st.integers(0, 1),
    density=st.floats(0, 1),
    seed=st.integers(0, 999),
    name=st.sampled_from(KINDS),
)
@settings(max_examples=120, deadline=None)
def test_counts_agree_with_loops(shape: tuple[int, ...], inner: int, density: float, seed: int, name: str) -> None:
    random = np.random.default_rng(seed)
    kind = patterns.parse(name)
    alive = random.random(shape) < density
    if kind.kept is None and alive.shape[inner] % kind.size == 0 and seed % 2:  # whole blocks
        alive = np.repeat(np.take(alive, range(0, shape[inner], kind.size), axis=inner), kind.size, axis=inner)
    weight = np.where(alive, random.normal(size=shape), 0)
    audit = lowering.count(0, "Conv", "w", weight, inner, [kind])
    assert (audit.zeros, audit.total) == ((weight == 0).sum(), weight.size)
    counts = audit.patterns[name]
    if shape[inner] % kind.size:
        assert counts == GroupCounts("ineligible", 0, 0, 0)
        return
    nonzeros = by_loops(weight, inner, kind.size)
    conforming = sum(count <= kind.kept if kind.kept else count in (0, kind.size) for count in nonzeros)
    assert (counts.conforming, counts.zero, counts.groups) == (conforming, nonzeros.count(0), len(nonzeros))
    assert counts.state == ("conformant" if conforming == len(nonzeros) else "violating")


def test_groups_lie_along_the_input_channels() -> None:
    """A Gemm with transB has its input channels in axis 1: pairs of zeros there, and none along axis 0."""
    state = weights(1, 0.0)
    state["head.weight"][:, 0::2] = 0
    found = lowering.audit(ir.from_proto(network(state)))
    assert [(weight.operator, weight.name) for weight in found] == [
        ("Conv", "conv1.weight"),
        ("Conv", "conv2.weight"),
        ("Gemm", "head.weight"),
    ]
    assert found[2].patterns["2:4"].state == "conformant"
    assert found[0].patterns["2:4"].state == "ineligible"  # one input channel
    assert list(found[0].patterns) == ["2:4", "block4"]


def test_pruned_layers_are_found_by_name_or_by_counts() -> None:
    found = lowering.audit(ir.from_proto(network(weights(1, 0.9))))
    zeros = found[1].zeros
    assert lowering.pruned(found, {"conv2.weight": (zeros, found[1].total)}) == [1]
    assert lowering.pruned(found, {"renamed": (zeros, found[1].total)}) == [1]
    assert lowering.pruned(found, {"renamed": (zeros + 1, found[1].total)}) is None
