"""A compiler from sparse ONNX models of convolutional networks to shared libraries that need libc only.

It stands alone: it needs numpy, onnx and a C compiler, and what it writes needs none of those. Its stages, a file each:

    graph      an ONNX file to a graph whose shapes and constants are known
    fuse       operators to layers: what can be computed in one loop over memory (`layers` defines them)
    layout     where tensors lie, and the steps over them
    plan       which kernel computes which step, and how it is cut; `tune` measures that
    pack       weights in the order in which kernels read them
    emit       tables in C; the kernels that read them are in `c/`
    toolchain  C to a shared library
    library    such a library in Python

`reference` computes the same layers in numpy, integers to the bit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import Compiled, compile
    from .library import Library, Port
    from .plan import INSTRUCTION_SETS
    from .toolchain import CompilerMissing

_HOMES = {
    "Compiled": "compiler",
    "CompilerMissing": "toolchain",
    "INSTRUCTION_SETS": "plan",
    "Library": "library",
    "Port": "library",
    "compile": "compiler",
}

__all__ = ["INSTRUCTION_SETS", "Compiled", "CompilerMissing", "Library", "Port", "compile"]


def __getattr__(name: str) -> Any:
    """Names are loaded when they are first used: a machine that only loads libraries has no onnx."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
