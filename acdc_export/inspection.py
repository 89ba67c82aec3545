"""`inspect`: zeros, 2:4 groups and 1x4 blocks of whatever holds weights, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import UsageError
from .extras import extra
from .pair import Pair
from .patterns import PatternKind, counted
from .records.inspection import Inspection, Part, Training, WeightAudit


def inspect(path: Path, patterns: Sequence[str] = ()) -> Inspection:
    """The weights in an ONNX file, a pair, a bundle or a .safetensors checkpoint, and how a pair was trained.

    Reads only; runs nothing. Groups are counted for the kinds of sparsity in `patterns` ("4:8", "block8"), or else for
    2:4 and block4; for those of a pair or bundle, also for the pattern of the pair.

    Raises:
        UsageError: it is none of these, or an unknown pattern.
        PairError, BundleError, GraphError: it is one, and broken.
    """
    return Inspection(tuple(_parts(path, patterns)), _training(path))


def _parts(path: Path, patterns: Sequence[str]) -> list[Part]:
    with extra("export"):
        from . import lowering

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


def _training(path: Path) -> Training | None:
    """How the pair in the folder `path`, or that of a bundle there, was trained; None where nothing says so."""
    if (path / "manifest.json").is_file():
        pair = Bundle.load(path).report.pair
        return Training(pair.name, pair.history, pair.left_dense)
    if path.is_dir():
        record = Pair.load(path).record
        return Training(record.name, record.counted_history, record.pattern.left_dense)
    return None


def _checkpoint(path: Path, kinds: Sequence[PatternKind]) -> tuple[WeightAudit, ...]:
    """PyTorch's layout: (out, in, ...) for Linear and Conv alike, so that the input channels are axis 1."""
    from safetensors import SafetensorError, safe_open

    from . import lowering

    weights: list[WeightAudit] = []
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict: it can't be iterated)
                tensor = tensors.get_tensor(name)
                if tensor.ndim >= 2 and np.issubdtype(tensor.dtype, np.floating):
                    weights.append(lowering.count(len(weights), "tensor", name, tensor, 1, kinds))
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read as safetensors: {error}.", "Check that the file is whole.") from error
    return tuple(weights)
