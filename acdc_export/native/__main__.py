"""`python -m acdc_export.native model.onnx`: the compiler alone."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AcdcExportError, RuntimeUnavailable
from ..printable import printable
from .plan import DENSE, INSTRUCTION_SETS, LANES
from .tune import runnable

if TYPE_CHECKING:
    from .compiler import Compiled

_INTERRUPTED = 130
_NAMED = 5  # layers, before it says how many more there are
_DESCRIPTION = """\
Compile an ONNX file of a convolutional network to a shared library that needs
libc only. Layers with many zeros get sparse kernels.

FP32 networks are taken, and INT8 ones: uint8 activations and int8 weights
between QuantizeLinear and DequantizeLinear.
"""
_EPILOG = """\
Written are STEM.so, its interface STEM.h, its source STEM.c with STEM.weights,
and STEM.plan.json, which builds the same library again without measuring.

Exit codes: 0 done; 2 the file or an option is wrong, or a place can't be
written; 3 there is no C compiler, or it failed; 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile as the arguments of the command say; return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        print(_told(_compiled(given)))
    except AcdcExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _compiled(given: argparse.Namespace) -> Compiled:
    try:
        from .compiler import compile
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed, which compiling needs."
        raise RuntimeUnavailable(reason, "Run: pip install 'acdc-export[export]'") from error
    return compile(
        given.model,
        given.out or Path(given.model.name.removesuffix(".onnx")),
        threads=given.threads,
        instruction_sets=given.instruction_set or INSTRUCTION_SETS,
        plan=given.plan,
        tune=given.tune,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m acdc_export.native",
        usage="%(prog)s MODEL [--out STEM] [--threads N]\n"
        "           [--instruction-set NAME ...] [--plan FILE] [--no-tune]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=80),
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file, opset 11 or later")
    options: list[tuple[str, dict[str, Any], str]] = [
        (
            "--out",
            {"metavar": "STEM", "type": Path},
            "path of the new files, without suffixes (the model's name, here)",
        ),
        (
            "--threads",
            {"metavar": "N", "type": int, "default": 0},
            "that kernels are measured with (all processors); a library runs with any number",
        ),
        (
            "--instruction-set",
            {"metavar": "NAME", "nargs": "+", "action": "extend"},
            f"compile for these alone: {', '.join(INSTRUCTION_SETS)} (all)",
        ),
        ("--plan", {"metavar": "FILE", "type": Path}, "follow a stored plan; nothing is measured"),
        (
            "--no-tune",
            {"dest": "tune", "action": "store_false"},
            "choose kernels by rules, not by measuring: compiles faster, runs slower",
        ),
    ]
    for name, how, meaning in options:
        parser.add_argument(name, help=meaning, **how)
    return parser


def _told(compiled: Compiled) -> str:
    """What was written, and what it is made of, in a few lines."""
    plan = json.loads(compiled.plan.read_text(encoding="utf-8"))
    paths = (compiled.library, compiled.header, compiled.program, compiled.weights, compiled.plan)
    names = [printable(str(path)) for path in paths]
    width = max(map(len, names))
    lines = [f"{name:{width}}  {_size(path):>7}" for name, path in zip(names, paths, strict=True)]
    count = len(plan["choices"])
    dense = sum(choice["kernel"] in (DENSE, LANES) for choice in plan["choices"].values())
    zeros, weights = (sum(layer[key] for layer in plan["layers"]) for key in ("zeros", "weights"))
    share = zeros / max(weights, 1)
    lines.append(f"Layers with weights: {count - dense} sparse, {dense} dense; {share:.1%} of the weights are zero.")
    if real := plan["fp32"]:
        more = f" and {len(real) - _NAMED} more" if len(real) > _NAMED else ""
        lines.append(f"In FP32: {', '.join(map(printable, real[:_NAMED]))}{more}.")
    sets = plan["instruction_sets"]
    threads = "1 thread" if plan["threads"] == 1 else f"{plan['threads']} threads"
    how = f"measured on {plan['measured_on']} with {threads}" if plan["measured_on"] else "chosen by rules"
    lines.append(f"Instruction sets: {', '.join(sets)}. Kernels: {how}.")
    if lacking := [name for name in sets if name not in runnable()]:
        lines.append(f"This processor lacks {', '.join(lacking)}: compiled, and never run here.")
    return "\n".join(lines)


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed then, too
    sys.exit(main())
