"""`pair.json`: what is known of a pair, as frozen dataclasses. docs/pair-format.md gives the reasons."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from ..files import Fingerprint, Upgrades, renamed
from ..records.history import History, from_revived

Half = Literal["sparse", "dense"]
HALVES: tuple[Half, Half] = ("sparse", "dense")

SCHEMA_VERSION = 2


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
    """Which weights are kept: the pattern, what it aimed at, and what it left in each pruned layer."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    kind: str  # "unstructured", "block4" or N:M, such as "2:4"; a name of a user's own where the pattern is one
    scope: str  # "global" or "uniform"; "group" for N:M
    sparsity: float  # aimed at: zeros / weights, over the pruned layers
    layers: dict[str, LayerCount]  # by the weight's name in the state dict, pruned layers only
    # Weights of two dimensions or more that it leaves dense, and why: by module name where the parameter is called
    # `weight`, else by the parameter's full name.
    left_dense: dict[str, str] = field(default_factory=dict)

    @property
    def achieved(self) -> float:
        """Zeros over weights, over all pruned layers, 0 to 1; 0 where none is pruned."""
        total = sum(layer.total for layer in self.layers.values())
        return sum(layer.zeros for layer in self.layers.values()) / total if total else 0.0


@dataclass(frozen=True)
class ReferenceRecord:
    """Where the reference outputs come from, which parity is judged by."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    computed_by: str  # "PyTorch 2.13.0, eager", "ONNX Runtime 1.31", ...


@dataclass(frozen=True)
class Record:
    """All of `pair.json` but the schema version."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    pattern: PatternRecord
    reference: ReferenceRecord
    created: str  # ISO 8601, UTC
    halves: tuple[Half, ...] = HALVES  # that are there, at least one
    state_dicts: tuple[Half, ...] = HALVES  # halves whose weights are there as safetensors, beside their ONNX
    history: History | None = None  # None where nothing is known of the training
    pipeline: str | None = None  # the pipeline file, verbatim, where it was trained by one
    seed: int | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # {"sparse": {"accuracy": 0.98}, "dense": ...}
    judged_output: str | None = None  # the output that is judged
    score: str | None = None  # the name of what it is judged by
    classes: tuple[str, ...] = ()  # the names of the classes, in the order of the judged output
    preprocessing: dict[str, Any] = field(default_factory=dict)  # of raw samples: JSON values
    tools: dict[str, str] = field(default_factory=dict)  # versions of what wrote it
    files: dict[str, Fingerprint] = field(default_factory=dict)  # of everything else in the folder; set by `write`

    @property
    def counted_history(self) -> History | None:
        """The history, with the totals of the pruned weights where an older release left them out."""
        if self.history is None or self.history.totals:
            return self.history
        return replace(self.history, totals={name: layer.total for name, layer in self.pattern.layers.items()})

    def is_zero_throughout(self, half: Half, name: str) -> bool:
        """Whether the record itself says that a half keeps no weight of a pruned layer."""
        if half == "sparse":
            layer = self.pattern.layers.get(name)
            return layer is not None and layer.zeros == layer.total
        return self.history is not None and self.history.twin_nonzeros.get(name) == 0

    @property
    def batch_size(self) -> int | None:
        """The only batch size that the networks run on; None where they run on any."""
        size = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None
        return size if isinstance(size, int) else None

    @property
    def judged(self) -> str:
        """The output that is judged; the first where `judged_output` doesn't say."""
        return self.judged_output or self.outputs[0].name

    @property
    def required_files(self) -> tuple[str, ...]:
        """The files that have to lie beside `pair.json`, and be hashed there."""
        graphs = (f"{half}.onnx" for half in self.halves)
        return (*graphs, "reference.npz", *(f"{half}.safetensors" for half in self.state_dicts))


def contradiction(record: Record) -> str | None:
    """What in a record can't be true beside the rest of it, as a phrase; None where all of it can."""
    outputs = [spec.name for spec in record.outputs]
    if not record.halves or len({*record.halves}) != len(record.halves):
        return "halves: name the sparse half, the dense one, or both"
    if not {*record.state_dicts} <= {*record.halves}:
        return "state_dicts: there is one of a half that isn't there"
    if len({spec.shape[:1] for spec in (*record.inputs, *record.outputs)}) > 1:
        return "inputs, outputs: they have different batches as their first axis"
    if not record.reference.computed_by.strip():
        return "reference.computed_by: say what computed the reference outputs"
    if record.judged_output is not None and record.judged_output not in outputs:
        return f"judged_output: there is no output '{record.judged_output}', only {', '.join(outputs)}"
    if record.score is not None and not record.score.strip():
        return "score: an empty name"
    if not all(name.strip() for name in record.classes):
        return "classes: an empty name"
    count = _class_count(record)
    if record.classes and count not in (None, len(record.classes)):
        return f"classes: {len(record.classes)} names for {count} classes"
    try:
        json.dumps(record.preprocessing, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"preprocessing: not JSON ({error})"
    return None


def _class_count(record: Record) -> int | None:
    """How many classes the judged output tells apart; None where its shape doesn't say."""
    judged = [spec for spec in record.outputs if record.judged_output in (None, spec.name)]
    if len(judged) != 1 or len(judged[0].shape) != 2:  # of more axes, any can be the classes'
        return None
    width = judged[0].shape[1]
    return width if isinstance(width, int) else None


def _from_1(pair: dict[str, Any]) -> dict[str, Any]:
    """Version 2 from version 1, which held both halves of an AC/DC run, as PyTorch had computed them."""
    torch = pair.get("tools", {}).get("torch")
    return {
        **pair,
        "pattern": renamed(pair["pattern"], dense="left_dense"),
        "reference": {"computed_by": f"PyTorch {torch}, eager" if torch else "PyTorch, eager"},
        "history": from_revived(pair["history"]),
    }


UPGRADES: Upgrades = {1: _from_1}
"""How pairs that older releases wrote are read."""
