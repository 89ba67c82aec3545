"""What people read of an inspection."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.patterns import GroupCounts
from acdc_export.present import document, text
from acdc_export.records import to_json
from acdc_export.records.inspection import Inspection, Part, Training, WeightAudit

from .examples import HISTORY

CONV_GROUPS = {"2:4": GroupCounts("conformant", 72, 0, 72), "block4": GroupCounts("violating", 9, 0, 72)}
STEM_GROUPS = dict.fromkeys(CONV_GROUPS, GroupCounts("ineligible", 0, 0, 0))
CONV = WeightAudit(0, "Conv", "conv.weight", (8, 4, 3, 3), 144, 288, CONV_GROUPS, True)
STEM = WeightAudit(1, "Conv", "stem.weight", (8, 1, 3, 3), 0, 72, STEM_GROUPS, True)
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


def test_a_training_that_is_not_known_is_said() -> None:
    unknown = Training("tiny", None, {"stem": "excluded by 'stem'"})
    shown = text(Inspection(FOUND.parts, unknown))
    assert "Nothing is known of how it was trained." in shown
    assert "Layers left dense" in shown
    assert document(unknown).charts == ()


def test_a_column_for_each_pattern() -> None:
    counts = {"block8": GroupCounts("conformant", 36, 18, 36), "4:8": GroupCounts("violating", 9, 18, 36)}
    part = Part("file", (replace(CONV, patterns=counts),))
    rows = [" ".join(line.split()) for line in text(Inspection((part,))).splitlines()]
    assert "layer zeros weights shape operator zero 1x8 blocks 4:8 groups" in rows
    assert "conv.weight 50.00 % 288 8x4x3x3 Conv 50.0 % 25.0 %" in rows


def test_a_file_without_weights_says_so() -> None:
    assert "empty: no weights" in text(Inspection((Part("empty", ()),)))
