"""Zeros, 2:4 groups and 1x4 blocks, against counts by loops; and asking an engine what it doesn't know."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc_export import lowering

from ..conftest import network, weights


def by_loops(weight: np.ndarray, inner: int) -> tuple[int, int, int]:
    """Groups, groups with at most two non-zeros, and all-zero blocks, of four neighbours along `inner`."""
    moved = np.moveaxis(weight, inner, -1)
    groups = kept = empty = 0
    for index in itertools.product(*(range(size) for size in moved.shape[:-1])):
        for start in range(0, moved.shape[-1], 4):
            alive = sum(1 for value in moved[index][start : start + 4] if value != 0)
            groups, kept, empty = groups + 1, kept + (alive <= 2), empty + (alive == 0)
    return groups, kept, empty


@given(
    shape=st.sampled_from([(3, 8, 3, 3), (2, 4), (8, 8), (5, 12, 1)]),
    inner=st.integers(0, 1),
    density=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_counts_agree_with_loops(shape: tuple[int, ...], inner: int, density: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = np.where(random.random(shape) < density, random.normal(size=shape), 0)
    found = lowering.count(0, "Conv", "w", weight, inner)
    assert (found.zeros, found.total) == ((weight == 0).sum(), weight.size)
    if shape[inner] % 4:
        assert found.two_of_four == "ineligible"
        return
    groups, kept, empty = by_loops(weight, inner)
    assert (found.two_of_four_groups, found.zero_blocks) == ((kept, groups), (empty, groups))
    assert found.two_of_four == ("conformant" if kept == groups else "violating")


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
    assert found[2].two_of_four == "conformant"
    assert found[0].two_of_four == "ineligible"  # one input channel


def test_pruned_layers_are_found_by_name_or_by_counts() -> None:
    found = lowering.audit(ir.from_proto(network(weights(1, 0.9))))
    zeros = found[1].zeros
    assert lowering.pruned(found, {"conv2.weight": (zeros, found[1].total)}) == [1]
    assert lowering.pruned(found, {"renamed": (zeros, found[1].total)}) == [1]
    assert lowering.pruned(found, {"renamed": (zeros + 1, found[1].total)}) is None


@pytest.mark.parametrize(("unknown", "named"), [({"ReduceMean"}, ["ReduceMean"]), ({"Relu"}, ["Relu"]), (set(), [])])
def test_an_engine_is_asked_which_operator_it_does_not_know(
    tmp_path: Path, unknown: set[str], named: list[str]
) -> None:
    onnx.save(network(weights(1, 0.9)), tmp_path / "model.onnx")

    def probe(path: Path) -> float:
        operators = [node.op_type for node in onnx.load(path).graph.node]
        return sum(operator not in unknown for operator in operators) / len(operators)

    assert lowering.unsupported(tmp_path / "model.onnx", tmp_path, probe) == named
