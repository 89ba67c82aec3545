"""What people read of a rehearsal."""

from __future__ import annotations

from acdc_export.present import text
from acdc_export.records.rehearsal import PrunedLayer, Rehearsal


def test_it_tells_the_zeros_and_the_time_of_a_step() -> None:
    steps = (("dense", 0.1), ("dense", 0.3), ("dense", 0.2), ("twin", 0.5))
    found = Rehearsal(steps, 8, {"a": PrunedLayer(90, 100), "b": PrunedLayer(45, 50)}, {"head": "excluded"})
    shown = text(found)
    assert shown.startswith("2 layers are pruned: 90.00 % zeros in 150 weights.")
    assert "Both halves were exported, and nothing was kept." in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["dense", "0.200", "3"] in rows
    assert ["head", "excluded"] in rows
