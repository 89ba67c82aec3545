"""Which deployment to serve, what speaks against it, and how both are shown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from acdc_export.present.comparison_picture import svg
from hypothesis import given
from hypothesis import strategies as st

from acdc_export.bundle import comparison
from acdc_export.errors import OutputError
from acdc_export.evidence.gates import Measurement, Verdict
from acdc_export.present.terminal import plain
from acdc_export.records.comparison import Comparison

from .comparison_examples import P50, change, example, workload

SVG = "{http://www.w3.org/2000/svg}"


def text(found: Comparison, width: int = 120) -> str:
    return plain(comparison.render(found, width), width)


def test_the_fastest_that_passed_is_recommended() -> None:
    found = example()
    assert found.recommended == "sparse@cpu-int8"
    assert "tiny: deploy the sparse half in cpu, int8." in text(found)
    assert "4.00 [3.92, 4.08] times as fast as the dense twin in onnxruntime, fp32." in text(found)
    failed = change(found, "sparse@cpu-int8", verdict="fail")
    assert failed.recommended == "sparse@cpu"


def test_only_what_may_be_deployed_is_recommended_where_that_is_asked_for() -> None:
    assert "deepsparse may NOT be deployed" in text(example())
    found = example(require_deployable=True)
    assert found.recommended == "sparse@onnxruntime"
    assert "may NOT" not in text(found)


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


def test_the_front_is_of_those_that_none_beats() -> None:
    assert example().front == ("sparse@cpu-int8", "sparse@cpu", "dense@cpu-int8", "dense@onnxruntime")


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(80, 86)), min_size=7, max_size=7))
def test_every_candidate_is_on_the_front_or_beaten_by_one_that_is(places: list[tuple[int, int]]) -> None:
    found, variants = example(), workload().variants
    for name, (p50, right) in zip(P50, places, strict=True):
        found = change(found, name, accuracy=Measurement(right, right - 1, right + 1))
        variants = {**variants, name: replace(variants[name], p50=float(p50))}
    found = replace(found, latency=(replace(workload(), variants=variants),))
    place = dict(zip(P50, places, strict=True))
    for name, (p50, right) in place.items():
        beaten = [
            other
            for other in found.front
            if place[other][0] <= p50 and place[other][1] >= right and place[other] != (p50, right)
        ]
        assert (name in found.front) != bool(beaten)


@pytest.mark.parametrize(
    ("survey", "statuses", "code"),
    [
        (False, ("pass", "pass"), 0),
        (False, ("pass", "fail"), 1),
        (False, ("pass", "not measured"), 3),
        (False, ("pass", "inconclusive"), 4),
        (True, ("pass", "fail"), 0),
    ],
)
def test_each_that_was_named_has_to_pass_and_one_of_a_survey(
    survey: bool, statuses: tuple[str, ...], code: int
) -> None:
    verdicts = tuple(Verdict(str(at), status, "") for at, status in enumerate(statuses))  # type: ignore[arg-type]
    assert example(survey=survey, verdicts=verdicts).exit_code == code


def test_a_survey_without_one_that_passed_fails() -> None:
    found = example(survey=True, verdicts=(Verdict("cpu", "fail", ""),))
    for name in P50:
        found = change(found, name, verdict="fail")
    assert found.exit_code == 1


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


def test_the_picture_shows_what_has_an_accuracy() -> None:
    root = ET.fromstring(svg(example()))
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == len(P50) - 1  # the control's accuracy was not measured
    assert "openvino" not in "".join(root.itertext())
    across = [float(circle.get("cx", "nan")) for circle in circles]
    assert across[1] == across[0]  # both in ONNX Runtime take as long
    assert min(across) == across[4]  # sparse in int8 is the fastest
    assert all(0 < at < 760 for at in across)


def test_names_in_the_picture_do_not_lie_over_one_another() -> None:
    found = example()
    for name in P50:
        found = change(found, name, accuracy=Measurement(90.0, 89.0, 91.0))
    variants = {name: replace(variant, p50=4.0) for name, variant in workload().variants.items()}
    root = ET.fromstring(svg(replace(found, latency=(replace(workload(), variants=variants),))))
    heights = sorted(
        float(one.get("y", "nan"))
        for one in root.iter(f"{SVG}text")
        if (one.text or "").startswith(("dense twin", "sparse half"))
    )
    assert len(heights) == len(P50)
    assert min(later - earlier for earlier, later in pairwise(heights)) >= 12


def test_without_any_accuracy_there_is_nothing_to_draw() -> None:
    found = example()
    for name in P50:
        found = change(found, name, accuracy=None)
    assert "nothing to draw" in svg(found)
    assert "Accuracy was not measured: speed is all that is compared." in text(found)


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
