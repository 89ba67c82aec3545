"""The pair: a sparse network and its dense twin, as a folder that needs no torch to read."""

from .inputs import Expected, named
from .record import HALVES, SCHEMA_VERSION, Half, LayerCount, PatternRecord, Record, ReferenceRecord, TensorSpec
from .store import Pair, Reference, build, check_place, write

__all__ = [
    "HALVES",
    "SCHEMA_VERSION",
    "Expected",
    "Half",
    "LayerCount",
    "Pair",
    "PatternRecord",
    "Record",
    "Reference",
    "ReferenceRecord",
    "TensorSpec",
    "build",
    "check_place",
    "named",
    "write",
]
