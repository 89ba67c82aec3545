"""How a pair was trained, as tables and as a chart."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.present import document, markdown, text
from acdc_export.present.document import Notes, RunChart, Span, Table
from acdc_export.records.history import EpochRecord, History, PhaseRecord
from acdc_export.records.inspection import Training

from .examples import HISTORY, example

TRAINED = Training("tiny", HISTORY, {"stem.0": "excluded by 'stem.*'"})


def tables(training: Training) -> list[Table]:
    return [section for section in document(training).sections if isinstance(section, Table)]


def chart(training: Training) -> RunChart:
    (found,) = document(training).charts
    assert isinstance(found, RunChart)
    return found


def test_each_phase_shows_what_was_recorded_at_its_end() -> None:
    phases, cost, dense = tables(TRAINED)
    assert phases.columns == ("phase", "epochs", "loss", "accuracy", "zeros", "masks changed", "regrown")
    assert phases.rows == (
        ("dense", "0-2", "0.333", "90.00 %", "0.00 %", "", ""),
        ("sparse", "3-4", "0.500", "87.50 %", "90.00 %", "", ""),
        ("dense", "5-6", "", "", "1.00 %", "", ""),
        ("sparse", "7-9", "0.250", "96.00 %", "90.00 %", "6.0 %", "3.3 %"),
        ("dense twin", "7-9", "", "98.00 %", "0.50 %", "", ""),
    )
    assert [row[1:] for row in cost.rows] == [
        ("2e+06", "100.0 %"), ("2.5e+05", "12.5 %"), ("5e+07", "83.3 %"), ("3e+07", "50.0 %"), ("6e+07", "100.0 %"),
    ]  # fmt: skip
    assert dense.rows == (("stem.0", "excluded by 'stem.*'"),)


def test_zeros_that_nobody_counted_are_not_shown() -> None:
    """Older releases recorded no totals; the densest phase may have zeros of its own."""
    phases, *_ = tables(replace(TRAINED, history=replace(HISTORY, totals={}, twin_nonzeros={})))
    assert [row[4] for row in phases.rows] == [""] * 5
    phases, *_ = tables(replace(TRAINED, history=replace(HISTORY, totals={"w": 2000}, twin_nonzeros={})))
    assert [row[4] for row in phases.rows] == ["50.00 %", "95.00 %", "50.50 %", "95.00 %", ""]


def test_layers_that_were_zero_throughout_are_named() -> None:
    assert "zero throughout" not in text(TRAINED)
    nonzeros = [{"w": 1000, "fc": 5}, {"w": 100, "fc": 0}, {"w": 990, "fc": 5}, {"w": 100, "fc": 0}]
    phases = tuple(replace(phase, nonzeros=of) for phase, of in zip(HISTORY.phases, nonzeros, strict=True))
    history = replace(HISTORY, phases=phases, totals={"w": 1000, "fc": 5}, twin_nonzeros={"w": 0, "fc": 5})
    notes = [section for section in document(replace(TRAINED, history=history)).sections if isinstance(section, Notes)]
    assert [note.lines for note in notes] == [
        (
            "fc: in epochs 3-4, 7-9.",
            "The sparse half keeps no weight of fc: what these layers get has no effect.",
            "The dense twin keeps no weight of w: what these layers get has no effect.",
        )
    ]


def test_a_history_without_records_has_its_phases() -> None:
    bare = Training("bare", History((PhaseRecord("dense", 0, 2), PhaseRecord("sparse", 2, 3)), "step"), {})
    (phases,) = tables(bare)
    assert phases.columns[1] == "steps"
    assert phases.rows[0] == ("dense", "0-1", "", "", "", "", "")
    assert chart(bare).phases == (Span("dense", 0, 2), Span("sparse", 2, 3))
    assert chart(bare).sparse == chart(bare).dense == ()
    assert text(bare).startswith("bare: 3 steps in 2 phases")


def test_without_phases_there_is_nothing_to_draw() -> None:
    assert document(Training("none", History(()), {})).sections == ()


def test_the_chart_has_both_halves_and_the_twin_begins_where_it_leaves() -> None:
    found = chart(TRAINED)
    assert [at for at, _ in found.sparse] == [1, 2, 3, 5, 10]
    assert found.dense == ((5, 87.5), (8, 95.0), (10, 98.0))


def test_an_accuracy_that_is_no_number_is_not_drawn() -> None:
    epochs = (EpochRecord(0, "sparse", "dense", {"accuracy": float("nan")}), *HISTORY.epochs[1:])
    found = chart(replace(TRAINED, history=replace(HISTORY, epochs=epochs)))
    assert [at for at, _ in found.sparse] == [2, 3, 5, 10]


def test_the_report_shows_it() -> None:
    said = markdown(example("pass"))
    assert "![Phases and accuracy](run.svg)" in said
    assert "| dense twin | 7-9 |  | 98.00 % | 0.50 % |  |  |" in said
    assert "3 input channels a filter are no multiple of 4" in said
