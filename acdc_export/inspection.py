"""`inspect`: zeros, 2:4 groups and 1x4 blocks of whatever holds weights, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .bundle import Bundle
from .errors import UsageError
from .extras import extra
from .pair import Pair
from .patterns import PatternKind, counted
from .records.inspection import Inspection, Part, Training, Uncounted, WeightAudit

_FLOATS = ("F64", "F32", "F16", "BF16")


def inspect(path: Path, patterns: Sequence[str] = ()) -> Inspection:
    """The weights in an ONNX file, a pair, a bundle or a .safetensors checkpoint, and how a pair was trained.

    Reads only; runs nothing. Groups are counted for the kinds of sparsity in `patterns` ("4:8", "block8"), or else for
    2:4 and block4; for those of a pair or bundle, also for the pattern of the pair.

    Raises:
        UsageError: it is none of these, none of its weights can be counted, or an unknown pattern.
        PairError, BundleError, GraphError: it is one, and broken.
    """
    parts = _parts(path, patterns)
    training = _training(path)
    left = [item for part in parts for item in part.uncounted]
    if left and training is None and not any(part.weights for part in parts):
        raise UsageError(
            f"None of the weights in {path} can be counted; the first is {left[0].name} ({left[0].reason}).",
            "Give the file that it was made from, before it was quantized or compiled.",
        )
    return Inspection(tuple(parts), training)


def _parts(path: Path, patterns: Sequence[str]) -> list[Part]:
    with extra("export"):
        from . import lowering

    if path.is_dir() and (path / "manifest.json").is_file():
        bundle = Bundle.load(path)
        kinds = counted(patterns, own=bundle.report.pair.kind)
        models = [path / "model" / model.file for model in bundle.manifest.models]
        return [_model(f"{path}, {model.name}", model, kinds) for model in models]
    if path.is_dir():
        pair = Pair.load(path)
        kinds = counted(patterns, own=pair.record.pattern.kind)
        halves = {half: lowering.contents(lowering.load(pair.onnx(half)), kinds) for half in pair.halves}
        for half, holds in halves.items():
            pair.check_weights(half, holds.weights)
        pruned = tuple(pair.record.pattern.layers)
        return [Part(f"{path}, {half} half", holds.weights, pruned, holds.uncounted) for half, holds in halves.items()]
    kinds = counted(patterns)
    if path.suffix == ".safetensors" and path.is_file():
        return [_checkpoint(path, kinds)]
    if path.suffix == ".onnx" and path.is_file():
        return [_model(str(path), path, kinds)]
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


def _model(title: str, path: Path, kinds: Sequence[PatternKind]) -> Part:
    """The weights of a model file, as far as its form is one that is read here, or the ONNX is that it came from."""
    from . import lowering

    if path.suffix != ".onnx" and path.with_suffix(".onnx").is_file():
        title, path = f"{title}, compiled from {path.stem}.onnx", path.with_suffix(".onnx")
    if path.suffix != ".onnx":
        reason = f"{path.suffix or 'this'} is a form of the runtime's own; the report has the zeros from before it"
        return Part(title, (), uncounted=(Uncounted("file", path.name, reason),))
    holds = lowering.contents(lowering.load(path), kinds)
    return Part(title, holds.weights, uncounted=holds.uncounted)


def _checkpoint(path: Path, kinds: Sequence[PatternKind]) -> Part:
    """PyTorch's layout: (out, in, ...) for Linear and Conv alike, so that the input channels are axis 1.

    Integers are not counted: nothing in the file says which of them stands for zero.
    """
    from safetensors import SafetensorError, safe_open

    from . import lowering

    weights: list[WeightAudit] = []
    uncounted: list[Uncounted] = []
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict: it can't be iterated)
                stored = tensors.get_slice(name)
                dtype = stored.get_dtype()
                if len(stored.get_shape()) < 2 or dtype == "BOOL":
                    continue
                if dtype not in _FLOATS:
                    reason = "numpy can't read it" if "F" in dtype else "nothing says which value stands for zero"
                    uncounted.append(Uncounted("tensor", name, f"{dtype}: {reason}"))
                    continue
                tensor = tensors.get_tensor(name)
                weights.append(lowering.count(len(weights), "tensor", name, tensor, 1, kinds))
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read as safetensors: {error}.", "Check that the file is whole.") from error
    return Part(str(path), tuple(weights), uncounted=tuple(uncounted))
