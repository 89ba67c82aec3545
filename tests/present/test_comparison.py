"""What to deploy first, what speaks against it, and the folder that it is kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acdc_export.bundle import comparison
from acdc_export.errors import OutputError
from acdc_export.evidence.gates import Measurement
from acdc_export.present import document, markdown, text
from acdc_export.present.document import ScatterChart

from .comparison_examples import CONTROL, P50, change, example, workload


def test_the_fastest_that_passed_is_recommended() -> None:
    found = example()
    assert found.recommended == "sparse@cpu-int8"
    assert "tiny: deploy the sparse half in cpu, int8." in text(found)
    assert "4.00 [3.92, 4.08] times as fast as the dense twin in onnxruntime, fp32." in text(found)
    failed = change(found, "sparse@cpu-int8", verdict="fail")
    assert failed.recommended == "sparse@cpu"


def test_what_may_be_deployed_is_recommended_before_what_is_faster() -> None:
    assert "deepsparse may NOT be deployed in production; --require-deployable leaves it out." in text(example())
    found = change(example(), "sparse@onnxruntime", verdict="pass")
    assert found.recommended == "sparse@onnxruntime"
    assert found.faster_in_evaluation == "sparse@cpu-int8"
    said = "The sparse half in cpu, int8 is faster, but deepsparse may NOT be deployed in production."
    assert said in text(found)
    faster = change(found, "sparse@cpu-int8", verdict="inconclusive")
    faster = change(faster, "sparse@cpu", deployable=True)
    assert (faster.recommended, faster.faster_in_evaluation) == ("sparse@cpu", None)
    assert "may NOT" not in text(faster)


def test_nothing_is_recommended_where_it_has_to_be_deployable_and_is_not() -> None:
    assert example(require_deployable=True).recommended is None
    found = change(example(require_deployable=True), "sparse@onnxruntime", verdict="pass")
    assert found.recommended == "sparse@onnxruntime"


def test_without_one_that_passed_nothing_is_recommended() -> None:
    found = example()
    for name in P50:
        found = change(found, name, verdict="inconclusive")
    assert found.recommended is None
    assert "nothing to recommend" in text(found)


def test_a_dense_half_that_is_better_is_named() -> None:
    """What the zeros don't win is said, first thing."""
    assert "the zeros win nothing" not in text(example())
    found = change(example(), "dense@cpu-int8", accuracy=Measurement(90.0, 89.0, 91.0))
    found = replace(
        found,
        latency=(
            replace(
                workload(),
                variants={
                    **workload().variants,
                    "dense@cpu-int8": replace(workload().variants["dense@cpu-int8"], p50=1.5),
                },
            ),
        ),
    )
    assert found.better_dense("sparse@cpu-int8") == ("dense@cpu-int8",)
    assert "But the dense twin in cpu, int8 is at least as accurate, and faster: the zeros win nothing" in text(found)


def test_what_can_not_be_had_is_listed_with_the_reason() -> None:
    assert "Not compared, tensorrt: there is no GPU" in text(example(missing={"tensorrt": "there is no GPU"}))


def test_other_batch_sizes_and_threads_have_a_column_each() -> None:
    shown = text(example(latency=(workload(), workload(1, 2, 0.1), workload(1, 1, 0.15))))
    (columns,) = {line.strip() for line in shown.splitlines() if "batch 1, 1 thread" in line}  # of both tables
    assert columns.split("  ") == ["batch 1, 1 thread", "batch 1, 2 threads", "batch 16, 2 threads"]
    assert "5,000" in shown  # 1 sample in 0.2 ms


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_number_is_cut(width: int) -> None:
    shown = text(example(), width)
    assert "…" not in shown
    assert "4.00 [3.92, 4.08]" in shown


def test_without_any_accuracy_there_is_nothing_to_draw() -> None:
    found = example()
    for name in P50:
        found = change(found, name, accuracy=None)
    assert document(found).charts == ()
    assert "comparison.svg" not in markdown(found)
    assert "Accuracy was not measured: speed is all that is compared." in text(found)


def test_the_chart_holds_what_has_an_accuracy_and_says_what_is_left_out() -> None:
    (chart,) = document(example()).charts
    assert isinstance(chart, ScatterChart)
    assert [point.x for point in chart.points] == [time for name, time in P50.items() if name != CONTROL]
    assert [point.label for point in chart.points if point.front] == [
        "dense twin in onnxruntime, fp32",
        "sparse half in cpu, fp32",
        "sparse half in cpu, int8",
        "dense twin in cpu, int8",
    ]
    assert (chart.points[0].low, chart.points[0].high) == (90.2, 91.8)
    assert chart.notes == ("Not in the picture, since accuracy was not measured: dense twin in openvino, default.",)
    assert f"- {chart.notes[0]}" in markdown(example())


def test_it_is_written_whole(tmp_path: Path) -> None:
    place = tmp_path / "tiny-comparison"
    comparison.write(place, example(), {"b16t2.sparse.0": np.arange(3)})
    assert sorted(path.name for path in place.iterdir()) == [
        "comparison.json",
        "comparison.md",
        "comparison.svg",
        "samples.npz",
    ]
    document = json.loads((place / "comparison.json").read_text())
    assert document["recommended"] == "sparse@cpu-int8"
    assert document["front"][0] == "sparse@cpu-int8"
    assert document["exit_code"] == 0
    assert "deploy the sparse half in cpu, int8" in (place / "comparison.md").read_text()
    (place / "comparison.json").unlink()
    with pytest.raises(OutputError, match="not a folder of ours"):
        comparison.write(place, example(), {})
