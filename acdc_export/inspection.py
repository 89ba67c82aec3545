"""`inspect`: zeros, 2:4 groups and 1x4 blocks of whatever holds weights, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import lowering
from .bundle import Bundle
from .errors import UsageError
from .extras import extra
from .pair import HALVES, Pair
from .present.report import Table
from .records.history import History

if TYPE_CHECKING:
    from .lowering import WeightAudit


@dataclass(frozen=True)
class Training:
    """How a pair was trained, and which layers its pattern leaves dense."""

    name: str
    history: History
    dense: dict[str, str]


@dataclass(frozen=True)
class Part:
    """One set of weights: a half of a pair, a model of a bundle, a file."""

    title: str
    weights: tuple[WeightAudit, ...]
    pruned: tuple[str, ...] = ()  # the layers that a pattern covers, where that is known


def inspect(path: Path) -> list[Part]:
    """The weights in an ONNX file, a pair, a bundle or a .safetensors checkpoint. Reads only; runs nothing.

    Raises:
        UsageError: it is none of these.
        PairError, BundleError, GraphError: it is one, and broken.
    """
    with extra("export"):
        pass

    if path.is_dir() and (path / "manifest.json").is_file():
        bundle = Bundle.load(path)
        models = [path / "model" / model.file for model in bundle.manifest.models]
        return [Part(f"{path}, {model.name}", lowering.audit(lowering.load(model))) for model in models]
    if path.is_dir():
        pair = Pair.load(path)
        halves = {half: lowering.audit(lowering.load(pair.onnx(half))) for half in HALVES}
        pruned = tuple(pair.record.pattern.layers)
        return [Part(f"{path}, {half} half", weights, pruned) for half, weights in halves.items()]
    if path.suffix == ".safetensors" and path.is_file():
        return [Part(str(path), _checkpoint(path))]
    if path.suffix == ".onnx" and path.is_file():
        return [Part(str(path), lowering.audit(lowering.load(path)))]
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
        return Training(pair.name, pair.history, pair.dense)
    if path.is_dir():
        record = Pair.load(path).record
        return Training(record.name, record.history, record.pattern.dense)
    return None


def _checkpoint(path: Path) -> tuple[WeightAudit, ...]:
    """PyTorch's layout: (out, in, ...) for Linear and Conv alike, so that the input channels are axis 1."""
    from safetensors import SafetensorError, safe_open

    found: list[WeightAudit] = []
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict: it can't be iterated)
                tensor = tensors.get_tensor(name)
                if tensor.ndim >= 2 and np.issubdtype(tensor.dtype, np.floating):
                    found.append(lowering.count(len(found), "tensor", name, tensor, inner=1))
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read as safetensors: {error}.", "Check that the file is whole.") from error
    return tuple(found)


def table(part: Part) -> Table:
    """For people: a row for each weight, an asterisk where the pattern covers it."""
    rows = [
        (
            weight.name + (" *" if weight.name in part.pruned else ""),
            f"{100 * weight.sparsity:.2f} %",
            f"{weight.total:,}",
            "x".join(str(size) for size in weight.shape),
            weight.operator,
            _share(weight.two_of_four_groups),
            _share(weight.zero_blocks),
        )
        for weight in part.weights
    ]
    zeros, total = (sum(getattr(weight, what) for weight in part.weights) for what in ("zeros", "total"))
    rows.append(("all", f"{100 * zeros / max(1, total):.2f} %", f"{total:,}", "", "", "", ""))
    columns = ("layer", "zeros", "weights", "shape", "operator", "2:4 groups", "zero 1x4 blocks")
    title = f"{part.title} (* pruned by the pattern)" if part.pruned else part.title
    return Table(title, columns, tuple(rows), optional=("operator", "zero 1x4 blocks", "2:4 groups", "shape"))


def _share(counts: tuple[int, int]) -> str:
    """Per cent, or a dash where groups of four input channels don't exist."""
    return f"{100 * counts[0] / counts[1]:.1f} %" if counts[1] else "–"
