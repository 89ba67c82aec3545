"""`inspect`: zeros, 2:4 groups and 1x4 blocks of whatever holds weights, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import UsageError
from .extras import extra
from .pair import HALVES, Pair
from .records.inspection import Inspection, Part, Training, WeightAudit


def inspect(path: Path) -> Inspection:
    """The weights in an ONNX file, a pair, a bundle or a .safetensors checkpoint, and how a pair was trained.

    Reads only; runs nothing.

    Raises:
        UsageError: it is none of these.
        PairError, BundleError, GraphError: it is one, and broken.
    """
    return Inspection(tuple(_parts(path)), _training(path))


def _parts(path: Path) -> list[Part]:
    with extra("export"):
        from . import lowering

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


def _training(path: Path) -> Training | None:
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

    from . import lowering

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
