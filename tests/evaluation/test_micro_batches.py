"""Batches that are run in parts: which part is taken, and that a bundle of such parts answers as one of whole ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from acdc_export import export, verify
from acdc_export.evaluation import micro_batches
from acdc_export.evidence.latency import Open
from acdc_export.lowering.lower import micro_batches as candidates
from acdc_export.pair import Pair

from ..evidence.fakes import Clock, Fake
from ..test_workflow import quick_target

X = {"x": np.zeros((8, 1), dtype=np.float32)}


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(8, [8, 1, 16]), (24, [24, 1, 16]), (1, [1]), (16, [16]), (48, [48])],
)
def test_what_suits_the_engine_is_not_split(batch_size: int, expected: list[int]) -> None:
    assert candidates(batch_size, (1, 16)) == expected


def test_an_engine_that_names_no_parts_runs_whole_batches() -> None:
    assert candidates(8, ()) == [8]


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        pytest.param({8: 10e6, 1: 4e6, 16: 6e6}, 1, id="the fastest"),
        pytest.param({8: 10e6, 1: 20e6, 16: 6e6}, 16, id="filled up"),
        pytest.param({8: 10e6, 1: 9.5e6, 16: 12e6}, 8, id="not for a twentieth"),
        pytest.param({8: 10e6, 1: 30e6, 16: 12e6}, 8, id="whole"),
    ],
)
def test_the_part_that_is_fastest(costs: dict[int, float], expected: int) -> None:
    clock = Clock()
    variants: Mapping[int, Open] = {part: partial(Fake, cost=cost, clock=clock) for part, cost in costs.items()}
    assert micro_batches.fastest(variants, X, 8, clock) == expected


@pytest.mark.runtime
@pytest.mark.slow
def test_a_bundle_whose_batches_are_run_in_parts(
    pair: Pair, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One half sample by sample, the other filled up; which is faster is not the question here."""
    taken = iter([1, 16])
    monkeypatch.setattr(micro_batches, "fastest", lambda variants, inputs, batch_size: next(taken))
    target = quick_target(
        tmp_path / "targets" / "cpu", "cpu", ("batch_sizes = [1, 16]", "batch_sizes = [16]"), ('"openvino"', "")
    )
    bundle = export(
        pair,
        target,
        precision="int8",
        batch_sizes=[3],
        data=str(labelled),
        calibrate=str(labelled),
        out=tmp_path / "bundles",
    )
    report = bundle.report
    assert [note for note in report.notes if "micro-batches" in note] == [
        "Batch 3: the sparse half runs in micro-batches of 1: faster.",
        "Batch 3: the dense half runs in micro-batches of 16, filled up: faster.",
    ]
    (taken_input,) = onnx.load(bundle.path / "model" / "model-b3.onnx").graph.input
    assert taken_input.type.tensor_type.shape.dim[0].dim_value == 1
    assert all(half.ok for half in report.parity["3"].values())
    assert set(report.latency[1].variants) >= {"sparse", "dense"}
    checked = verify(bundle.path, target=target)
    assert {check.gate: check.status for check in checked.checks}["golden outputs, batch 3"] == "pass"
