"""`pair.json`: what is said of a pair, as frozen dataclasses. docs/pair-format.md gives the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..files import Fingerprint
from ..records.history import History

Half = Literal["sparse", "dense"]
HALVES: tuple[Half, Half] = ("sparse", "dense")

SCHEMA_VERSION = 1
FILES = ("sparse.onnx", "dense.onnx", "reference.npz", "sparse.safetensors", "dense.safetensors")
"""Everything in a pair's folder beside `pair.json`, all of it hashed there."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the network: `shape` in elements, a name where a dimension is symbolic."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    dtype: str  # numpy's name for it
    shape: tuple[int | str, ...]

    def at(self, batch_size: int) -> tuple[int, ...]:
        """The shape with every symbolic dimension (there is one: the batch) set to `batch_size`."""
        return tuple(batch_size if isinstance(dim, str) else dim for dim in self.shape)


@dataclass(frozen=True)
class LayerCount:
    """How many of a layer's weights are zero in the sparse half."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    zeros: int
    total: int


@dataclass(frozen=True)
class PatternRecord:
    """Which weights live: the pattern, what it aimed at, and what it left in each pruned layer."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    kind: str  # "unstructured", "block4" or N:M, such as "2:4"
    scope: str  # "global" or "uniform"; "group" for N:M
    sparsity: float  # aimed at: zeros / weights, over the pruned layers
    layers: dict[str, LayerCount]  # by the weight's name in the state dict, pruned layers only
    dense: dict[str, str] = field(default_factory=dict)  # the layers left dense, by the module's name, and why

    @property
    def achieved(self) -> float:
        """Zeros over weights, over all pruned layers."""
        return sum(layer.zeros for layer in self.layers.values()) / sum(layer.total for layer in self.layers.values())


@dataclass(frozen=True)
class Record:
    """All of `pair.json` but the schema version."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    pattern: PatternRecord
    history: History
    created: str  # ISO 8601, UTC
    pipeline: str | None = None  # the pipeline file, verbatim, where one was the recipe
    seed: int | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # {"sparse": {"accuracy": 0.98}, "dense": ...}
    tools: dict[str, str] = field(default_factory=dict)  # versions of what wrote it
    files: dict[str, Fingerprint] = field(default_factory=dict)  # of everything else in the folder; set by `write`
