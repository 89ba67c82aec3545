"""The whole way from an ONNX file to a shared library, on one page."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import GraphError, OutputError, UsageError
from . import plan as plans
from .emit import Source, emit
from .fuse import fuse
from .graph import read
from .layout import Layout, lay_out
from .plan import INSTRUCTION_SETS
from .toolchain import build, compiler
from .tune import tuned

_SUFFIXES = (".so", ".h", ".c", ".weights", ".plan.json")
_MOST_WEIGHTS = 2**31 - 2**26  # bytes: code reaches no further
_MOST_THREADS = 1024  # as in runtime.c
_REAL = {"PRODUCT", "POOL", "AFFINE", "FUNCTION", "BINARY", "SOFTMAX"}  # kinds of steps that compute in FP32


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

    All of them are written, or none: they are made in a temporary folder beside them, and moved at the end.

    Args:
        model: an ONNX file, FP32 or with uint8 activations and INT8 weights between QuantizeLinear nodes.
        stem: path of the new files up to their suffixes. Its folder has to be there.
        threads: that the library will be used with, 0 for all processors; any number can be used later.
        instruction_sets: of `INSTRUCTION_SETS`, those that kernels are compiled for.
        plan: a stored plan: nothing is measured, and the library is the same; `instruction_sets` are the plan's.
        tune: measure which kernels are fastest here; otherwise they are chosen by rules.

    Raises:
        GraphError: the graph can't be compiled, or the plan is of another one.
        UsageError: an unknown instruction set, a number of threads or a stem that can't be.
        OutputError: the folder of the stem isn't there or can't be written.
        CompilerMissing: there is no C compiler.
        RuntimeUnavailable: the C compiler failed.
    """
    sets = _known(instruction_sets)
    if not 0 <= threads <= _MOST_THREADS:
        raise UsageError(f"{threads} threads are asked for.", f"1 to {_MOST_THREADS}, or 0 for all processors.")
    _check_stem(stem)
    compiler()  # before anything takes time
    threads = threads or len(os.sched_getaffinity(0))
    layout = lay_out(fuse(read(model)))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    try:
        with tempfile.TemporaryDirectory(prefix="acdc-export-", dir=stem.parent) as name:
            folder = Path(name)
            if plan is not None:
                chosen = plans.load(plan, layout)
            elif tune:
                chosen = tuned(layout, sets, threads, folder)
            else:
                chosen = plans.guess(layout, sets, threads)
            source = emit(layout, chosen, stem.name, stem.name, digest)
            if len(source.weights) > _MOST_WEIGHTS:
                size = len(source.weights) / 2**30
                raise GraphError(f"{model} has {size:.1f} GiB of weights.", "A library holds less than 2 GiB.")
            build(source, folder, chosen.instruction_sets)
            chosen.save(folder / f"{stem.name}.plan.json", layout, _about(layout, source))
            for suffix in _SUFFIXES:
                (folder / f"{stem.name}{suffix}").replace(_with(stem, suffix))
    except OSError as error:
        raise OutputError(
            f"{stem}.so can't be written: {error.strerror or error}.", "Name a place in a folder that can be written."
        ) from error
    return Compiled(*(_with(stem, suffix) for suffix in _SUFFIXES))


def _known(instruction_sets: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in instruction_sets if name not in INSTRUCTION_SETS]
    if unknown or not instruction_sets:
        named = f"The instruction set {unknown[0]!r} is not known." if unknown else "No instruction set is named."
        raise UsageError(named, f"There are {', '.join(INSTRUCTION_SETS)}.")
    return tuple(name for name in INSTRUCTION_SETS if name in instruction_sets)


def _check_stem(stem: Path) -> None:
    """The name stands in C, as that of the header and the weights. What is in the way is told before it costs time."""
    if not stem.name or any(not char.isprintable() or char in '"\\' for char in stem.name):
        raise UsageError(f"{stem.name!r} can't be a name of C files.", "Leave out quotes, backslashes and line ends.")
    for suffix in _SUFFIXES:
        if _with(stem, suffix).is_dir():
            raise OutputError(f"{_with(stem, suffix)} is a folder.", "Name another place, or move it away.")


def _with(stem: Path, suffix: str) -> Path:
    return stem.parent / f"{stem.name}{suffix}"


def _about(layout: Layout, source: Source) -> dict[str, object]:
    """What else a plan tells: the zeros of each layer, and which layers of an INT8 network compute in FP32."""
    layers = [
        {"step": at, "name": layout.steps[at].name, "zeros": zeros, "weights": weights}
        for at, (zeros, weights) in sorted(source.zeros.items())
    ]
    integer = any(step.kind == "PRODUCT_U8" for step in layout.steps)
    real = [step.name for step in layout.steps if step.kind in _REAL and integer]
    return {"layers": layers, "fp32": real}


__all__ = ["Compiled", "compile"]
