"""Ask an engine which operators it does not take onto its fast path.

Engines tell one fraction for the whole graph. So the graph is cut after the first occurrence of each kind of operator.
The first cut whose fraction falls below 1 ends in an operator that the engine doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx.utils import extract_model

from .audit import audit, load


def unsupported(path: Path, folder: Path, probe: Callable[[Path], float]) -> list[str]:
    """Return the operator types of the graph `path` that are not on the fast path of the engine behind `probe`.

    `probe(file)` loads an ONNX file and returns the fraction (0 to 1) of its operators that are supported. The cuts are
    written to `folder`. The fraction can't tell operators behind an unsupported one apart from it: they are not named.
    """
    model = load(path)
    weights = {weight.name for weight in audit(model)}
    inputs = [value.name or "" for value in model.graph.inputs]
    asked: set[str] = set()  # operator types
    slow: list[str] = []  # operator types that are not on the fast path
    tainted: set[str] = set()  # values that depend on a slow operator
    weighted: set[str] = set()  # values that depend on a weight: an engine ignores graphs without any
    for node in model.graph:
        sources = {value.name or "" for value in node.inputs if value is not None}
        results = {value.name or "" for value in node.outputs}
        if sources & tainted:
            tainted |= results
            continue
        if not (sources & weighted or sources & weights):
            continue
        weighted |= results
        if node.op_type in asked:
            tainted |= results if node.op_type in slow else set()
            continue
        asked.add(node.op_type)
        cut = folder / f"cut-{len(asked)}.onnx"
        try:
            extract_model(str(path), str(cut), inputs, [node.outputs[0].name or ""], check_model=False)
        except (ValueError, onnx.checker.ValidationError):  # a value whose shape is not known can't be cut at
            continue
        if probe(cut) < 1.0:
            slow.append(node.op_type)
            tainted |= results
    return slow
