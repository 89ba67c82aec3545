"""From the canonical graph to the one that a target takes: its passes in order, the zeros audited after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from ..errors import GraphError
from ..records.inspection import WeightAudit
from .audit import audit, load
from .quantize import Quantization


@dataclass(frozen=True)
class Step:
    """What a pass left: the zeros in all weighted operators, of how many weights."""

    name: str
    zeros: int
    total: int


@dataclass(frozen=True)
class TransformedGraph:
    """A graph as the target takes it."""

    path: Path
    steps: tuple[Step, ...]  # the canonical graph first, under the name "canonical"
    canonical: tuple[WeightAudit, ...]  # before the first pass, and
    weights: tuple[WeightAudit, ...]  # as deployed, position by position
    operators: dict[str, int]  # how often each operator occurs


def transform(
    source: Path,
    destination: Path,
    *,
    passes: tuple[str, ...],
    batch_size: int,
    ir_version: int | None = None,
    opset: int | None = None,
    quantization: Quantization | None = None,
) -> TransformedGraph:
    """Write the canonical graph `source` to `destination` in a target's form; with `quantization` in INT8.

    `passes` are names of modules in `lowering/passes`, run in that order. `opset` is the newest one that the target
    takes: there is no conversion downwards (onnx's own converter leaves attributes that runtimes refuse), so a
    newer graph is refused.

    Raises:
        GraphError: not ONNX, an opset that is too new, a pass that could not do its work, or one that lost a zero.
    """
    model = load(source)
    version = model.opset_imports.get("", 0)
    if opset is not None and version > opset:
        raise GraphError(
            f"{source} uses opset {version}; the target takes {opset} at most.", f"Export it with opset {opset}."
        )
    common.ClearMetadataAndDocStringPass()(model)  # the exporter writes source paths into every node
    canonical = before = audit(model)
    steps = [_step("canonical", before)]
    if quantization:
        model = load(quantization.calibrated.folded)
        common.ClearMetadataAndDocStringPass()(model)
    for name, change in _changes(passes, batch_size, quantization):
        change(model)
        model.graph.sort()
        after = audit(model)
        _compare(name, before, after)
        steps.append(_step(name, after))
        before = after
    if ir_version is not None:
        model.ir_version = ir_version
    ir.save(model, destination)
    try:
        onnx.checker.check_model(str(destination), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise GraphError(f"{source}, lowered, is not valid ONNX: {reason}", "Please report this graph.") from error
    operators: dict[str, int] = {}
    for node in model.graph:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return TransformedGraph(destination, tuple(steps), canonical, before, operators)


def _changes(
    passes: tuple[str, ...], batch_size: int, quantization: Quantization | None
) -> Iterator[tuple[str, Callable[[ir.Model], Any]]]:
    """What is done to a model, step by step."""
    if quantization:
        yield "equalize", lambda model: None  # done already: here it is counted
    for name in passes:
        yield name, partial(import_module(f".passes.{name}", __package__).run, batch_size=batch_size)
    if quantization:
        yield quantization.scheme, quantization.run


def _step(name: str, weights: tuple[WeightAudit, ...]) -> Step:
    return Step(name, sum(weight.zeros for weight in weights), sum(weight.total for weight in weights))


def _compare(name: str, before: tuple[WeightAudit, ...], after: tuple[WeightAudit, ...]) -> None:
    """Rule 2 of the house: every step keeps the zeros, position by position."""
    if len(before) != len(after):
        raise GraphError(
            f"The pass {name} changed the number of weighted operators from {len(before)} to {len(after)}.",
            "Leave it out of the target's passes, and please report this graph.",
        )
    for old, new in zip(before, after, strict=True):
        if new.zeros < old.zeros:
            raise GraphError(
                f"The pass {name} lost {old.zeros - new.zeros} zeros of the weight {old.name} (no. {old.position}).",
                "Leave it out of the target's passes, and please report this graph.",
            )
