"""The pair that the benchmarks measure: that of the pipeline `digits`, trained once and then reused."""

from __future__ import annotations

from acdc_export import workflow
from acdc_export.pair import Pair
from acdc_export.present.progress import TerminalProgress


def digits() -> Pair:
    return workflow.obtain("digits", "runs", progress=TerminalProgress())
