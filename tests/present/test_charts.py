"""Charts: the same bytes, readable, and an extra."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.text import Text

from acdc_export import present
from acdc_export.errors import RuntimeUnavailable
from acdc_export.present import charts, document
from acdc_export.present.document import Chart, Point, RunChart, ScatterChart, Span
from acdc_export.records.inspection import Training

from . import comparison_examples
from .examples import HISTORY, example

SVG = "{http://www.w3.org/2000/svg}"
RUN = cast(RunChart, document(example()).charts[0])
SCATTER = cast(ScatterChart, document(comparison_examples.example()).charts[0])


def texts(chart: Chart) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(charts.svg(chart)).iter(f"{SVG}text")]


@pytest.mark.parametrize("chart", [RUN, SCATTER])
def test_the_same_chart_gives_the_same_bytes_whatever_the_users_style(chart: Chart) -> None:
    first = charts.svg(chart)
    with matplotlib.rc_context({"font.size": 20.0, "axes.grid": True, "svg.hashsalt": "x"}):
        assert charts.svg(chart) == first
        assert matplotlib.rcParams["font.size"] == 20
    assert "<dc:date>" not in first


def test_a_run_says_what_its_lines_are() -> None:
    said = texts(RUN)
    assert {"sparse phase", "sparse half", "dense twin", "epoch", "accuracy, %"} <= set(said)
    assert "tiny: phases and accuracy" in said
    assert {"0", "3", "5", "7", "10"} <= set(said)


def test_the_twin_is_dashed_and_the_sparse_half_is_not() -> None:
    with charts._styled():
        (axes,) = charts._run(RUN).axes
    assert {line.get_label(): line.get_linestyle() for line in axes.lines} == {"sparse half": "-", "dense twin": "--"}
    assert len(axes.patches) == 2  # the sparse phases


def test_a_run_without_accuracy_has_its_phases() -> None:
    said = texts(replace(RUN, sparse=(), dense=()))
    assert "sparse phase" in said
    assert "sparse half" not in said


def test_a_diverging_start_does_not_flatten_the_rest() -> None:
    steady = tuple((float(at), 93.0) for at in range(2, 21))
    run = replace(RUN, phases=(Span("dense", 0, 20),), sparse=((1.0, 1.0), *steady), dense=())
    with charts._styled():
        (axes,) = charts._run(run).axes
    assert axes.get_ylim() == (89.5, 100.5)


def test_many_phases_leave_room_for_their_edges() -> None:
    said = texts(replace(RUN, phases=tuple(Span("sparse", at, at + 1) for at in range(200)), sparse=(), dense=()))
    assert 10 < len([text for text in said if text.isdigit()]) <= 25


def test_a_comparison_names_what_is_drawn() -> None:
    said = texts(SCATTER)
    assert {"sparse half, with its interval", "dense twin, with its interval", "Pareto front"} <= set(said)
    assert {"median latency, milliseconds a batch", "accuracy, %"} <= set(said)
    assert "sparse half in cpu, int8" in said


SPREAD: dict[str, Callable[[int], tuple[float, float]]] = {
    "all in one place": lambda at: (4.0, 90.0),
    "in a row": lambda at: (4.0 + at / 100, 90.0),
    "in a column": lambda at: (4.0, 90.0 + at / 100),
    "over three powers of ten": lambda at: (10.0 ** (at % 4), 90.0 - at / 10),
}


@pytest.mark.parametrize("spread", SPREAD)
def test_names_lie_neither_over_one_another_nor_over_a_point(spread: str) -> None:
    places = [SPREAD[spread](at) for at in range(16)]
    points = tuple(
        Point(f"sparse half in target{at}, int8", "sparse", x, y, y - 1, y + 1, False)
        for at, (x, y) in enumerate(places)
    )
    with charts._styled():
        figure = charts._scatter(replace(SCATTER, points=points))
        figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = [text for text in axes.texts if text.get_text().startswith("sparse half in target")]
        boxes = [Text.get_window_extent(text) for text in labels]  # without the lines that lead to the points
        frame = axes.get_window_extent()
        marks = [axes.transData.transform(place) for place in places]
    assert len(boxes) == 16
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-0.5).overlaps(pair[1].padded(-0.5))]
    assert not [box for box in boxes for mark in marks if box.contains(*mark)]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


@pytest.mark.parametrize("span", [1.0, 1.001, 1.5, 3.0, 40.0, 5000.0])
def test_the_axis_of_latency_has_round_numbers(span: float) -> None:
    ticks = charts._round(0.87, 0.87 * span * 1.05)
    assert 3 <= len(ticks) <= 12
    assert all(float(f"{tick:.4g}") == pytest.approx(tick) for tick in ticks)


@pytest.mark.parametrize("text", ["a <b> & 'c'", "$\\frac$", "\x1b[31m\x00\ud800", "日本", "]]>", "--"])
def test_names_are_text_whatever_they_are(text: str) -> None:
    points = (replace(SCATTER.points[0], label=text), *SCATTER.points[1:])
    said = texts(replace(SCATTER, points=points, subject=text))
    assert text in said or not text.isprintable()
    assert texts(replace(RUN, subject=text))


def test_without_matplotlib_the_text_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    present.write_markdown(tmp_path / "report.md", example())
    text = (tmp_path / "report.md").read_text()
    assert "The picture needs matplotlib: pip install 'acdc-export[charts]'" in text
    assert "![" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    with pytest.raises(RuntimeUnavailable, match=r"acdc-export\[charts\]"):
        present.draw(tmp_path / "run.svg", Training("tiny", HISTORY, {}))


def test_pictures_lie_beside_the_text(tmp_path: Path) -> None:
    present.write_markdown(tmp_path / "report.md", example())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "run.svg"]
    assert (tmp_path / "run.svg").read_text().startswith("<svg")


def test_what_has_no_chart_can_not_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        present.draw(tmp_path / "run.svg", Training("tiny", replace(HISTORY, phases=()), {}))
