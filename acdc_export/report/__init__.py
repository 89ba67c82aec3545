"""The report: `record.py` is `report.json`; what people read is a pure function of it."""

from .markdown import PICTURE, markdown
from .picture import svg
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
    "PICTURE",
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
    "svg",
    "to_json",
]
