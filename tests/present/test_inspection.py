"""What people read of an inspection."""

from __future__ import annotations

from acdc_export.present import document, text
from acdc_export.records import to_json
from acdc_export.records.inspection import Inspection, Part, Training, WeightAudit

from .examples import HISTORY

CONV = WeightAudit(0, "Conv", "conv.weight", (8, 4, 3, 3), 144, 288, "conformant", (72, 72), (0, 72), True)
STEM = WeightAudit(1, "Conv", "stem.weight", (8, 1, 3, 3), 0, 72, "ineligible", (0, 0), (0, 0), True)
FOUND = Inspection((Part("p, sparse half", (CONV, STEM), ("conv.weight",)), Part("p, dense half", (STEM,))))


def test_the_sums_come_first_then_each_layer() -> None:
    shown = document(FOUND)
    assert shown.headline == "p, sparse half: 40.00 % zeros in 360 weights"
    assert shown.summary == ("p, dense half: 0.00 % zeros in 72 weights",)
    rows = [" ".join(line.split()) for line in text(FOUND).splitlines()]
    assert "conv.weight * 50.00 % 288 8x4x3x3 Conv 100.0 % 0.0 %" in rows
    assert "stem.weight 0.00 % 72 8x1x3x3 Conv – –" in rows
    assert "p, sparse half (* pruned by the pattern)" in rows


def test_the_training_is_shown_where_it_is_known() -> None:
    assert "Training" not in text(FOUND)
    trained = Inspection(FOUND.parts, Training("tiny", HISTORY, {}))
    assert "Training, at the end of each phase" in text(trained)
    assert to_json(FOUND)["training"] is None
    assert to_json(trained)["training"]["name"] == "tiny"


def test_a_file_without_weights_says_so() -> None:
    assert "0.00 % zeros in 0 weights" in text(Inspection((Part("empty", ()),)))
