"""The whole way from an ONNX file to a shared library, on one page."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import plan as plans
from .emit import Source, emit
from .fuse import fuse
from .graph import read
from .layout import Layout, lay_out
from .plan import INSTRUCTION_SETS, Plan
from .toolchain import build, compiler


@dataclass(frozen=True)
class Compiled:
    """What was written: the library, what it was made of, and the plan that makes it again."""

    library: Path
    header: Path
    program: Path
    weights: Path
    plan: Path


def compile(
    model: Path,
    stem: Path,
    *,
    threads: int = 0,
    instruction_sets: Sequence[str] = INSTRUCTION_SETS,
    plan: Path | None = None,
    tune: bool = True,
) -> Compiled:
    """Compile an ONNX file to STEM.so, and write STEM.h, STEM.c, STEM.weights and STEM.plan.json beside it.

    Args:
        model: an ONNX file, FP32 or with uint8 activations and INT8 weights between QuantizeLinear nodes.
        stem: path of the new files up to their suffixes.
        threads: that the library will be used with, 0 for all processors; any number can be used later.
        instruction_sets: of `INSTRUCTION_SETS`, those that kernels are compiled for.
        plan: a stored plan: nothing is measured, and the library is the same.
        tune: measure which kernels are fastest here; otherwise they are chosen by rules.

    Raises:
        GraphError: the graph can't be compiled, or the plan is of another one.
        CompilerMissing: there is no C compiler.
        RuntimeUnavailable: the C compiler failed.
    """
    compiler()  # before anything takes time
    threads = threads or len(os.sched_getaffinity(0))
    network = fuse(read(model))
    layout = lay_out(network)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="acdc-export-", dir=stem.parent) as name:
        folder = Path(name)
        if plan is not None:
            chosen = plans.load(plan, layout)
        elif tune:
            from .tune import tuned

            chosen = tuned(layout, instruction_sets, threads, folder)
        else:
            chosen = plans.guess(layout, instruction_sets, threads)
        source = emit(layout, chosen, stem.name, stem.name, digest)
        staged = write(source, folder, stem.name)
        build(staged.program, staged.library, chosen.instruction_sets, folder)
        chosen.save(staged.plan, _about(layout, source))
        for path in (staged.header, staged.program, staged.weights, staged.plan, staged.library):
            os.replace(path, stem.parent / path.name)
    return _files(stem)


def write(source: Source, folder: Path, stem: str) -> Compiled:
    """Write C files into a folder; the library and the plan come later."""
    files = _files(folder / stem)
    files.header.write_text(source.header, encoding="utf-8")
    files.program.write_text(source.program, encoding="utf-8")
    files.weights.write_bytes(source.weights)
    return files


def _files(stem: Path) -> Compiled:
    library, header, program, weights, plan = (
        stem.parent / (stem.name + suffix) for suffix in (".so", ".h", ".c", ".weights", ".plan.json")
    )
    return Compiled(library, header, program, weights, plan)


def _about(layout: Layout, source: Source) -> dict[str, object]:
    """What else a plan tells: the zeros of each layer, for those who count them."""
    layers = [
        {"step": at, "name": layout.steps[at].name, "zeros": zeros, "weights": weights}
        for at, (zeros, weights) in sorted(source.zeros.items())
    ]
    return {"layers": layers}


__all__ = ["Compiled", "Plan", "compile", "write"]
