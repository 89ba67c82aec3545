"""How a pair was trained, as tables and as a picture."""

from dataclasses import replace
from xml.etree import ElementTree

from acdc_export.present.run_picture import svg

from acdc_export.present.markdown import markdown
from acdc_export.present.training import tables
from acdc_export.records.history import EpochRecord, History, PhaseRecord

from .examples import HISTORY, example

SVG = "{http://www.w3.org/2000/svg}"


def test_each_phase_shows_what_was_recorded_at_its_end():
    phases, cost, dense = tables(HISTORY, {"stem.0": "excluded by 'stem.*'"})
    assert phases.columns == ("phase", "epochs", "loss", "accuracy", "zeros", "masks changed", "regrown")
    assert phases.rows == (
        ("dense", "0-2", "0.333", "90.00 %", "0.00 %", "", ""),
        ("sparse", "3-4", "0.500", "87.50 %", "90.00 %", "", ""),
        ("dense", "5-6", "", "", "1.00 %", "", ""),
        ("sparse", "7-9", "0.250", "96.00 %", "90.00 %", "6.0 %", "3.3 %"),
        ("dense twin", "7-9", "", "98.00 %", "0.00 %", "", ""),
    )
    assert [row[1:] for row in cost.rows] == [
        ("2e+06", "100.0 %"), ("2.5e+05", "12.5 %"), ("5e+07", "83.3 %"), ("3e+07", "50.0 %"), ("6e+07", "100.0 %"),
    ]  # fmt: skip
    assert dense.rows == (("stem.0", "excluded by 'stem.*'"),)


def test_a_history_without_records_has_its_phases():
    bare = History((PhaseRecord("dense", 0, 2), PhaseRecord("sparse", 2, 3)), "step")
    (phases,) = tables(bare, {})
    assert phases.columns[1] == "steps"
    assert phases.rows[0] == ("dense", "0-1", "", "", "", "", "")
    assert "polyline" not in svg(bare, "bare")


def test_the_picture_shades_sparse_phases_and_draws_both_halves():
    root = ElementTree.fromstring(svg(HISTORY, "a <tiny> & small run"))
    assert root.find(f"{SVG}title").text == "a <tiny> & small run"
    shaded = [one for one in root.iter(f"{SVG}rect") if one.get("class") == "sparse"]
    assert len(shaded) == 2
    sparse, twin = root.iter(f"{SVG}polyline")

    def places(line):
        return [tuple(map(float, place.split(","))) for place in line.get("points").split()]

    assert len(places(sparse)) == 5
    assert len(places(twin)) == 3  # from where it leaves
    frame = next(one for one in root.iter(f"{SVG}rect") if one.get("class") == "frame")
    left, top, width, height = (float(frame.get(key)) for key in ("x", "y", "width", "height"))
    for x, y in (*places(sparse), *places(twin)):
        assert left <= x <= left + width + 0.1
        assert top - 0.1 <= y <= top + height + 0.1
    assert places(sparse)[-1][1] > places(twin)[-1][1]  # the twin is better, which is further up


def test_a_diverging_start_does_not_leave_the_frame():
    low = tuple(EpochRecord(at, "sparse", "dense", {"accuracy": 0.01}) for at in range(1))
    steady = tuple(EpochRecord(at, "sparse", "dense", {"accuracy": 0.93}) for at in range(1, 20))
    picture = svg(replace(HISTORY, epochs=low + steady), "run")
    assert "90 %" in picture
    assert "100 %" in picture


def test_the_report_shows_it():
    text = markdown(example("pass"))
    assert "![Phases and accuracy](run.svg)" in text
    assert "| dense twin | 7-9 |  | 98.00 % | 0.00 % |  |  |" in text
    assert "3 input channels a filter are no multiple of 4" in text
