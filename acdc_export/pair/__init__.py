"""The pair: a sparse network and its dense twin from one training run, as a folder that needs no torch to read."""

from .inputs import named
from .record import FILES, HALVES, SCHEMA_VERSION, Half, LayerCount, PatternRecord, Record, TensorSpec
from .store import Pair, Reference, check_place, write

__all__ = [
    "FILES",
    "HALVES",
    "SCHEMA_VERSION",
    "Half",
    "LayerCount",
    "Pair",
    "PatternRecord",
    "Record",
    "Reference",
    "TensorSpec",
    "check_place",
    "named",
    "write",
]
