"""The report: `record.py` is `report.json`; what people read is a pure function of it."""

from .markdown import markdown
from .record import (
    DERIVED,
    SCHEMA_VERSION,
    LayerRow,
    PairFacts,
    Report,
    SizeFacts,
    StepRow,
    Structure,
    TargetFacts,
    plain_json,
    to_json,
)

__all__ = [
    "DERIVED",
    "SCHEMA_VERSION",
    "LayerRow",
    "PairFacts",
    "Report",
    "SizeFacts",
    "StepRow",
    "Structure",
    "TargetFacts",
    "markdown",
    "plain_json",
    "to_json",
]
