"""Which operators an engine does not take onto its fast path, found by asking it.

Engines tell one fraction for the whole graph. Cut after the first occurrence of each kind of operator, the graph
shows which one it is: the first cut whose fraction falls below 1 ends in an operator that the engine doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx.utils import extract_model

from .audit import audit, load


def unsupported(path: Path, folder: Path, probe: Callable[[Path], float]) -> list[str]:
    """Operator types of the graph `path` that are not on the fast path of the engine behind `probe`.

    `probe(file)` loads an ONNX file and returns the fraction (0 to 1) of its operators that are supported; `folder`
    is for the files. Operators after one that was already found can't be told apart from it, and are not named.
    """
    model = load(path)
    weighted = {weight.name for weight in audit(model)}
    inputs = [value.name or "" for value in model.graph.inputs]
    seen: set[str] = set()
    tainted: set[str] = set()  # values that depend on a found operator
    deep: set[str] = set()  # values that depend on a weighted one: an engine ignores graphs without any
    found: list[str] = []
    for node in model.graph:
        sources = {value.name or "" for value in node.inputs if value is not None}
        results = {value.name or "" for value in node.outputs}
        if sources & tainted:
            tainted |= results
            continue
        if not (sources & deep or sources & weighted):
            continue
        deep |= results
        if node.op_type in seen:
            tainted |= results if node.op_type in found else set()
            continue
        seen.add(node.op_type)
        cut = folder / f"cut-{len(seen)}.onnx"
        try:
            extract_model(str(path), str(cut), inputs, [node.outputs[0].name or ""], check_model=False)
        except (ValueError, onnx.checker.ValidationError):  # a value whose shape is not known can't be cut at
            continue
        if probe(cut) < 1.0:
            found.append(node.op_type)
            tainted |= results
    return found
