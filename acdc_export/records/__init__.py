"""What was found out, as frozen dataclasses: pure data, and the content of the JSON files. Nothing here is shown."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON has it: its SCHEMA_VERSION, if it has one, its DERIVED properties, and its fields.

    The derived keys follow from the others. They are for those who read the JSON without this package.
    """
    version = getattr(record, "SCHEMA_VERSION", None)
    head = {} if version is None else {"schema_version": version}
    derived = {key: getattr(record, key) for key in getattr(record, "DERIVED", ())}
    content: dict[str, Any] = _plain({**head, **derived, **asdict(record)})
    return content


def _plain(value: Any) -> Any:
    """Lists for tuples, text for keys and for the numbers that JSON lacks (NaN and the infinite ones)."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
