"""The sparse half in DeepSparse against its twin there, and in ONNX Runtime, which a user would pick instead."""

from __future__ import annotations

import tempfile
from typing import Any

from acdc_export import export
from acdc_export.present.progress import TerminalProgress
from acdc_export.records import to_json

from . import pairs

BATCH_SIZES = (1, 16, 64)


def main() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        report = export(pairs.digits(), "cpu", batch_sizes=BATCH_SIZES, out=out, progress=TerminalProgress()).report
    print(f"{'batch':>5}  {'variant':<20}{'p50 ms':>9}  over sparse, with 95 % interval")
    for facts in sorted(report.latency, key=lambda facts: facts.batch_size):
        for name, variant in facts.variants.items():
            ratio = facts.ratios.get(name)
            shown = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""
            print(f"{facts.batch_size:>5}  {name:<20}{variant.p50:9.3f}  {shown}")
    content = to_json(report)
    return {key: content[key] for key in ("verdict", "latency", "accuracy", "measured", "seconds")}
