"""`inspect`: zeros, and the groups of sparsity patterns, of whatever holds weights, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import lowering
from .bundle import Bundle
from .errors import UsageError
from .extras import extra
from .pair import Pair
from .patterns import GroupCounts, PatternKind, counted, parse
from .present.report import Table
from .records.history import History

if TYPE_CHECKING:
    from .lowering import WeightAudit


@dataclass(frozen=True)
class Training:
    """How a pair was trained, if that is known, and which layers its pattern leaves dense."""

    name: str
    history: History | None
    left_dense: dict[str, str]


@dataclass(frozen=True)
class Part:
    """One set of weights: a half of a pair, a model of a bundle, a file."""

    title: str
    weights: tuple[WeightAudit, ...]
    pruned: tuple[str, ...] = ()  # the layers that a pattern covers, where that is known


def inspect(path: Path, patterns: Sequence[str] = ()) -> list[Part]:
    """The weights in an ONNX file, a pair, a bundle or a .safetensors checkpoint. Reads only; runs nothing.

    Groups are counted for the kinds of sparsity in `patterns` ("4:8", "block8"), or else for 2:4 and block4; for those
    of a pair or bundle, also for the pattern of the pair.

    Raises:
        UsageError: it is none of these, or an unknown pattern.
        PairError, BundleError, GraphError: it is one, and broken.
    """
    with extra("export"):
        pass

    if path.is_dir() and (path / "manifest.json").is_file():
        bundle = Bundle.load(path)
        kinds = counted(patterns, own=bundle.report.pair.kind)
        models = [path / "model" / model.file for model in bundle.manifest.models]
        return [Part(f"{path}, {model.name}", lowering.audit(lowering.load(model), kinds)) for model in models]
    if path.is_dir():
        pair = Pair.load(path)
        kinds = counted(patterns, own=pair.record.pattern.kind)
        halves = {half: lowering.audit(lowering.load(pair.onnx(half)), kinds) for half in pair.halves}
        for half, weights in halves.items():
            pair.check_weights(half, weights)
        pruned = tuple(pair.record.pattern.layers)
        return [Part(f"{path}, {half} half", weights, pruned) for half, weights in halves.items()]
    kinds = counted(patterns)
    if path.suffix == ".safetensors" and path.is_file():
        return [Part(str(path), _checkpoint(path, kinds))]
    if path.suffix == ".onnx" and path.is_file():
        return [Part(str(path), lowering.audit(lowering.load(path), kinds))]
    if path.exists():
        raise UsageError(
            f"{path} is not something to inspect.",
            "Give an .onnx or .safetensors file, or the folder of a pair or bundle.",
        )
    raise UsageError(f"There is nothing at {path}.", "Check the path.")


def training(path: Path) -> Training | None:
    """How the pair in the folder `path`, or that of a bundle there, was trained; None where nothing says so."""
    if (path / "manifest.json").is_file():
        pair = Bundle.load(path).report.pair
        return Training(pair.name, pair.history, pair.left_dense)
    if path.is_dir():
        record = Pair.load(path).record
        return Training(record.name, record.history, record.pattern.left_dense)
    return None


def _checkpoint(path: Path, kinds: Sequence[PatternKind]) -> tuple[WeightAudit, ...]:
    """PyTorch's layout: (out, in, ...) for Linear and Conv alike, so that the input channels are axis 1."""
    from safetensors import SafetensorError, safe_open

    found: list[WeightAudit] = []
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict: it can't be iterated)
                tensor = tensors.get_tensor(name)
                if tensor.ndim >= 2 and np.issubdtype(tensor.dtype, np.floating):
                    found.append(lowering.count(len(found), "tensor", name, tensor, 1, kinds))
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read as safetensors: {error}.", "Check that the file is whole.") from error
    return tuple(found)


def table(part: Part) -> Table:
    """For people: a row for each weight, an asterisk where the pattern covers it."""
    kinds = list(part.weights[0].patterns) if part.weights else []
    headings = [_heading(name) for name in kinds]
    rows = [
        (
            weight.name + (" *" if weight.name in part.pruned else ""),
            f"{100 * weight.sparsity:.2f} %",
            f"{weight.total:,}",
            "x".join(str(size) for size in weight.shape),
            weight.operator,
            *(_share(name, weight.patterns[name]) for name in kinds),
        )
        for weight in part.weights
    ]
    zeros, total = (sum(getattr(weight, what) for weight in part.weights) for what in ("zeros", "total"))
    rows.append(("all", f"{100 * zeros / max(1, total):.2f} %", f"{total:,}", "", "", *("" for _ in kinds)))
    columns = ("layer", "zeros", "weights", "shape", "operator", *headings)
    title = f"{part.title} (* pruned by the pattern)" if part.pruned else part.title
    return Table(title, columns, tuple(rows), optional=("operator", *reversed(headings), "shape"))


def _heading(name: str) -> str:
    """What is shown of a kind: the groups that conform to N:M, and the blocks that are zero."""
    kind = parse(name)
    return f"zero 1x{kind.size} blocks" if kind.kept is None else f"{name} groups"


def _share(name: str, counts: GroupCounts) -> str:
    """Per cent, or a dash where the input channels can't be divided into groups."""
    shown = counts.zero if parse(name).kept is None else counts.conforming
    return f"{100 * shown / counts.groups:.1f} %" if counts.groups else "–"
