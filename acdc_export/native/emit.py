"""Stage 6: from steps and a plan to C.

The C file holds the network as tables: a struct of constants for each step, as `c/steps.h` defines them. The kernels
that read these tables come behind it, from the other files in `c/`. Weights are in a file of their own, which the
assembler includes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..version import __version__
from .layers import (
    Affine,
    Binary,
    Concat,
    Dequantize,
    Function,
    Pool,
    Product,
    Quantize,
    Reshape,
    Softmax,
    Table,
    Tensor,
)
from .layout import Layout, Step, Storage, is_whole
from .pack import Packed, pack
from .plan import INSTRUCTION_SETS, Plan, Tiling

_FUNCTIONS = (
    "Identity", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Silu", "Gelu", "GeluTanh", "Tanh", "Erf",
    "Elu", "Exp", "Sqrt", "Softplus", "Abs", "Neg",
)  # fmt: skip
"""In the order of `apply` in pointwise.c."""

_BINARY = ("add", "sub", "mul", "div")
_WEIGHTS = """
extern const unsigned char model_weights[] __attribute__((visibility("hidden")));
__asm__(".section .rodata\\n.balign 64\\n.globl model_weights\\n.hidden model_weights\\n"
        "model_weights:\\n.incbin \\"{file}\\"\\n.balign 64\\n.zero 64\\n.previous\\n");
"""
_ALIGNED = 64
_PIECES = 8  # of a step that is no product, for each thread beyond the first


@dataclass(frozen=True)
class Source:
    """A network as C: the header, the program, and the weights that the program includes.

    `kernels` is what the program gives where SET is defined: the same text for all networks.
    """

    stem: str
    header: str
    program: str
    kernels: str
    weights: bytes
    zeros: dict[int, tuple[int, int]]  # by step: zeros and weights

    def write(self, folder: Path) -> Path:
        """Write STEM.h, STEM.c and STEM.weights into a folder; return the path of the C file."""
        program = folder / f"{self.stem}.c"
        program.write_text(self.program, encoding="utf-8")
        program.with_name(f"{self.stem}.h").write_text(self.header, encoding="utf-8")
        program.with_name(f"{self.stem}.weights").write_bytes(self.weights)
        return program


def emit(layout: Layout, plan: Plan, stem: str, title: str, digest: str) -> Source:
    """Write a network. `stem` names the files, `title` and `digest` (SHA-256 of the ONNX file) are told in them."""
    return _Emitter(layout, plan, stem, title, digest).run()


class _Emitter:
    def __init__(self, layout: Layout, plan: Plan, stem: str, title: str, digest: str) -> None:
        self.layout, self.plan, self.stem, self.title, self.digest = layout, plan, stem, title, digest
        self.weights = bytearray()
        self.placed: dict[str, int] = {}  # where arrays are that were placed, by what is in them
        self.zeros: dict[int, tuple[int, int]] = {}
        self.structs: list[str] = []

    def run(self) -> Source:
        steps = [self.step(at, step) for at, step in enumerate(self.layout.steps)]
        data = "\n".join([*self.structs, *self.tables(steps)])
        written = f"Written by acdc-export {__version__}."
        header = _file("model.h.in").replace("@TITLE@", _comment(self.title)).replace("@WRITTEN_BY@", written)
        kernels = "\n".join(map(_file, ("steps.h", "vectors.h", "products.c", "pointwise.c", "kernels.c")))
        program = "\n".join(
            [
                f"/* {_comment(self.title)}, compiled. {written}",
                "",
                "   Compiled once for each instruction set, with SET as its number, and once without, for what is",
                "   common to all: the network as tables, and the runtime. */",
                "#if defined(SET)",
                kernels,
                "#else",
                _file("steps.h"),
                "#pragma GCC visibility push(default)",
                f'#include "{self.stem}.h"',
                "#pragma GCC visibility pop",
                _WEIGHTS.format(file=_text(self.stem + ".weights")[1:-1]),
                data,
                _file("runtime.c"),
                "#endif",
                "",
            ]
        )
        return Source(self.stem, header, program, kernels, bytes(self.weights), self.zeros)

    # Arrays.

    def array(self, values: NDArray[Any], kind: str) -> str:
        """Place an array among the weights; return it as an expression of C."""
        if not values.size:
            return "0"
        content = np.ascontiguousarray(values).tobytes()
        key = hashlib.sha256(content).hexdigest()
        if key not in self.placed:
            self.weights.extend(bytes(-len(self.weights) % _ALIGNED))
            self.placed[key] = len(self.weights)
            self.weights.extend(content)
        return f"(const {kind} *)(model_weights + {self.placed[key]})"

    def channels(self, values: NDArray[Any], kind: str = "float", multiple: int = 16) -> str:
        padded = np.zeros(-(-len(values) // multiple) * multiple, values.dtype)
        padded[: len(values)] = values
        return self.array(padded, kind)

    # Steps.

    def step(self, at: int, step: Step) -> str:
        write = {
            "PRODUCT": self.product, "PRODUCT_U8": self.product, "POOL": self.pool, "POOL_U8": self.pool,
            "FUNCTION": self.pointwise, "TABLE_U8": self.pointwise, "AFFINE": self.pointwise,
            "AFFINE_U8": self.pointwise, "BINARY": self.pointwise, "BINARY_U8": self.pointwise,
            "SOFTMAX": self.pointwise,
        }.get(step.kind, self.transfer)  # fmt: skip
        kind, fields = write(at, step)
        body = ", ".join(f".{name} = {value}" for name, value in fields.items() if value not in ("0", 0))
        self.structs.append(f"/* {_comment(_describe(step))} */")
        self.structs.append(f"static const struct {kind} step_{at} = {{{body or 0}}};")
        tilings = ", ".join(self.tiling(at, step, name) for name in INSTRUCTION_SETS)
        return f"    {{{step.kind}, {_text(step.name)}, {_text(step.operator)}, &step_{at}, {{{tilings}}}}},"

    def tiling(self, at: int, step: Step, instruction_set: str) -> str:
        choice = self.plan.choices.get(at)
        if choice is None:
            pieces = 1 if self.plan.threads == 1 or step.kind in ("SOFTMAX", "RESHAPE", "RESHAPE_U8") else _pieces(step)
            return f"{{0, 1, {pieces}, 1}}"
        tiling = choice.tilings.get(instruction_set, Tiling())
        return f"{{{choice.kernel}, {tiling.tile}, {tiling.pixel_pieces}, {tiling.channel_pieces}}}"

    def product(self, at: int, step: Step) -> tuple[str, dict[str, Any]]:
        layer, source, target = step.layer, step.reads[0], step.writes
        assert isinstance(layer, Product)
        assert target is not None
        integer, to_float = step.kind == "PRODUCT_U8", step.kind == "PRODUCT_U8" and target.tensor.quantized is None
        packed: Packed = pack(layer, source, self.plan.choices[at].kernel)
        self.zeros[at] = packed.zeros, packed.total
        residual = step.reads[1] if layer.residual is not None else target
        outputs, (_, height, width) = len(layer.weights), target.tensor.shape
        contiguous = source.pitch == target.pitch == width and not target.bordered
        first, *others = target.form.shifts
        shifts = len(target.form.shifts), first, others[0] - first if others else 1, target.copy_distance
        low, high, zero = layer.low, layer.high, 0
        clipped = low > -np.inf or high < np.inf
        if integer and target.tensor.quantized is not None:
            zero = target.tensor.quantized.zero
            clipped = (low, high) != (0.0, 255.0)
        fields = {
            "in": _view(source), "out": _view(target), "residual": _view(residual),
            "height": height, "width": width, "outputs": outputs, "contiguous": int(contiguous),
            "residual_contiguous": int(source.pitch == residual.pitch == width),
            "copies": f"{{{', '.join(map(str, shifts))}}}",
            "to_float": int(to_float), "clipped": int(clipped), "taps": len(packed.offsets), "wide": _wide(layer),
            "starts": self.array(packed.starts, "uint32_t"), "safe": self.array(packed.safe, "uint32_t"),
            "offsets": self.array(packed.offsets, "int32_t"),
            "weights": self.array(packed.weights, "void"),
            "bias": self.channels(layer.bias, "void"),
            "low": _real(low), "high": _real(high), "zero": zero,
        }  # fmt: skip
        if layer.multipliers is not None:
            fields["multipliers"] = self.channels(layer.multipliers)
        if layer.residual is not None:
            fields["residual_multiplier"] = _real(layer.residual)
        return "product", fields

    def pool(self, at: int, step: Step) -> tuple[str, dict[str, Any]]:
        layer, source, target = step.layer, step.reads[0], step.writes
        assert isinstance(layer, Pool)
        assert target is not None
        _, height, width = target.tensor.shape
        whole = is_whole(layer, source.tensor)
        integer = source.tensor.quantized is not None
        counts = _counts(layer, source.tensor, (height, width))
        divisors = (1 / counts).astype(np.float32)
        if integer:
            divisors = (np.float32(layer.multiplier) / counts.astype(np.float32)).astype(np.float32)
        padded = np.append(divisors, np.zeros(16, np.float32))  # a vector that begins with the last is read whole
        fields = {
            "in": _view(source), "out": _view(target),
            "grid": f"{{{target.planes}, {height}, {width}}}",
            "average": int(layer.kind == "average"), "whole": int(whole),
            "in_rows": source.tensor.shape[1], "in_columns": source.tensor.shape[2],
            "divisors": self.array(padded, "float") if layer.kind == "average" else "0",
            "in_zero": _zero(source.tensor), "out_zero": _zero(target.tensor),
        }  # fmt: skip
        if not whole:
            offsets = _window_offsets(layer, source)
            fields |= {
                "taps": len(offsets), "offsets": self.array(offsets, "int32_t"),
                "row_step": layer.window.strides[0], "column_step": layer.window.strides[1],
            }  # fmt: skip
        return "pool", fields

    def pointwise(self, at: int, step: Step) -> tuple[str, dict[str, Any]]:
        layer, source, target = step.layer, step.reads[0], step.writes
        assert target is not None
        fields: dict[str, Any] = {"in": _view(source), "out": _view(target), "channels": target.tensor.shape[0]}
        operands = [source, target]
        given = 0
        flat = True
        if isinstance(layer, Binary):
            other = step.reads[1]
            broadcast = other.tensor.shape != source.tensor.shape
            flat = not broadcast
            operands += [] if broadcast else [other]
            fields |= {
                "other": _view(other), "broadcast": int(broadcast), "kind": _BINARY.index(layer.kind),
                "a_multiplier": _real(layer.multipliers[0]), "b_multiplier": _real(layer.multipliers[1]),
                "low": _real(layer.low), "high": _real(layer.high),
                "a_zero": _zero(source.tensor), "b_zero": _zero(other.tensor), "zero": _zero(target.tensor),
            }  # fmt: skip
        elif isinstance(layer, Affine):
            flat = False
            fields |= {
                "broadcast": 1,
                "multipliers": self.channels(layer.multipliers), "offsets": self.channels(layer.offsets),
                "low": _real(layer.low), "high": _real(layer.high), "zero": _zero(target.tensor),
            }  # fmt: skip
        elif isinstance(layer, Table):
            fields["table"] = self.array(layer.table, "uint8_t")
        elif isinstance(layer, Function):
            given = _FUNCTIONS.index(layer.operator)
            values = ", ".join(map(_real, layer.parameters))
            fields |= {"kind": given} | ({"parameters": f"{{{values}}}"} if values else {})
        elif isinstance(layer, Softmax):
            fields["kind"] = int(layer.logarithm)
        fields["grid"] = _grid(operands, flat)
        return "pointwise", fields

    def transfer(self, at: int, step: Step) -> tuple[str, dict[str, Any]]:
        layer, target = step.layer, step.writes
        source = step.reads[0] if step.reads else target
        assert source is not None
        tensor = source.tensor
        channels, height, width = tensor.shape
        fields: dict[str, Any] = {"channels": channels, "height": height, "width": width, "port": max(step.port, 0)}
        if step.reads:
            fields["in"] = _view(source)
        if target is not None:
            fields["out"] = _view(target)
        if step.kind in ("RELAYOUT", "LOAD", "LOAD_U8"):
            assert target is not None
            inner, form = target.form.inner, target.form
            top, left = form.border[:2] if form.phases != (1, 1) else inner[:2]
            fields |= {
                "row_step": form.phases[0], "column_step": form.phases[1], "top": top, "left": left,
                "phases": form.held, "out_rows": target.rows, "out_columns": target.columns,
            }  # fmt: skip
            if step.kind == "RELAYOUT":  # what it moves are planes, whatever they hold
                fields["channels"] = source.planes
        quantized = None
        if isinstance(layer, Quantize) or step.kind == "LOAD_U8":
            assert target is not None
            quantized = target.tensor.quantized
        elif isinstance(layer, Dequantize):
            quantized = tensor.quantized
        if quantized is not None:
            fields |= {"scale": _real(quantized.scale), "zero": quantized.zero}
        if isinstance(layer, Concat):
            network = self.layout.network
            fields["first_channel"] = sum(network.tensors[name].shape[0] for name in layer.inputs[: step.port])
            fields["port"] = 0
            if layer.tables and (layer.tables[step.port] != np.arange(256)).any():
                fields["table"] = self.array(layer.tables[step.port], "uint8_t")
        if isinstance(layer, Reshape):
            assert target is not None
            fields |= {"out_height": target.tensor.shape[1], "out_width": target.tensor.shape[2]}
        return "transfer", fields

    # The tables of the whole network.

    def tables(self, steps: Sequence[str]) -> Iterator[str]:
        network, layout = self.layout.network, self.layout
        sets = self.plan.instruction_sets
        integer = any(step.kind == "PRODUCT_U8" for step in layout.steps)
        yield f"enum {{ STEPS = {len(steps)}, BORDERS = {len(layout.borders)} }};"
        yield f"#define ARENA {layout.words + 16 & ~15}L"
        yield f"enum {{ SLACK = {_slack(layout)} }}; /* words before and after memory that loads may touch */"
        yield "static const struct step steps[STEPS] = {"
        yield from steps
        yield "};"
        yield "static const struct {\n    int32_t base, words;"
        yield "    union {\n        float real;\n        uint32_t word;\n    } value;\n} borders[] = {"
        for base, words, tensor, value in layout.borders:
            level = f".word = {int(value) * 0x01010101:#x}" if tensor.quantized else f".real = {_real(value)}"
            yield f"    {{{base}, {words}, {{{level}}}}},"
        yield "    {0, 0, {0}},\n};"
        for direction, names in (("inputs", network.inputs), ("outputs", network.outputs)):
            yield f"static const model_port {direction}[] = {{"
            for name in names:
                yield f"    {_port(network.tensors[name])},"
            yield "};"
        yield "static const char *const set_names[SETS] = {" + ", ".join(map(_text, INSTRUCTION_SETS)) + "};"
        for at, name in enumerate(INSTRUCTION_SETS):
            if name in sets:
                yield f"run_piece run_piece_{at};\nhas_tile has_tile_{at};\nextern const int lanes_{at};"
        runners = (f"run_piece_{at}" if name in sets else "0" for at, name in enumerate(INSTRUCTION_SETS))
        widths = (f"&lanes_{at}" if name in sets else "0" for at, name in enumerate(INSTRUCTION_SETS))
        tiles = (f"has_tile_{at}" if name in sets else "0" for at, name in enumerate(INSTRUCTION_SETS))
        yield "#define RUNNERS " + ", ".join(runners)
        yield "#define LANES_OF_SETS " + ", ".join(widths)
        yield "#define TILES_OF_SETS " + ", ".join(tiles)
        yield "static const model_description description = {"
        yield f"    MODEL_ABI, {_text(self.title)}, {_text(self.digest)}, {_text(__version__)},"
        yield f"    {_text('int8' if integer else 'fp32')}, {_text(' '.join(sets))},"
        yield f"    {len(network.inputs)}, inputs, {len(network.outputs)}, outputs, STEPS, {len(self.weights)}L,"
        yield "    ARENA * 4,\n};"


def _slack(layout: Layout) -> int:
    """What is loaded beyond a tensor: a tile, or a vector of windows that are far apart."""
    steps = (step.layer.window.strides[1] for step in layout.steps if isinstance(step.layer, Pool))
    return 4096 + 16 * max(steps, default=0)


def _pieces(step: Step) -> int:
    target = step.writes or step.reads[0]
    return max(1, min(_PIECES, target.planes * target.rows))


def _view(storage: Storage) -> str:
    return "{" + ", ".join(map(str, storage.view)) + "}"


def _grid(storages: Sequence[Storage], flat: bool) -> str:
    """Planes, rows and columns of a loop; rows and planes are joined where all operands have them side by side."""
    planes, (_, rows, columns) = storages[0].planes, storages[0].tensor.shape
    if all(storage.pitch == columns for storage in storages):
        rows, columns = 1, rows * columns
        if flat and all(storage.plane == columns for storage in storages):
            planes, columns = 1, planes * columns
    return f"{{{planes}, {rows}, {columns}}}"


def _zero(tensor: Tensor) -> int:
    return 0 if tensor.quantized is None else tensor.quantized.zero


def _wide(layer: Product) -> int:
    """Whether a scaled sum may leave the range of int32."""
    if layer.multipliers is None:
        return 0
    sums = np.abs(layer.weights.reshape(len(layer.weights), -1).astype(np.int64)).sum(1) * 255
    most = (sums + np.abs(layer.bias.astype(np.int64))) * layer.multipliers.astype(np.float64)
    residual = 0.0 if layer.residual is None else 255 * layer.residual
    return int(float(most.max(initial=0.0)) + residual >= 2.0**30)


def _counts(layer: Pool, tensor: Tensor, out: tuple[int, int]) -> NDArray[np.float64]:
    """Values that count for the average of each pixel: (rows, columns)."""
    counts = []
    for axis in (0, 1):
        size, stride, dilation = layer.window.kernel[axis], layer.window.strides[axis], layer.window.dilations[axis]
        before, after, have = layer.window.pads[axis], layer.window.pads[axis + 2], tensor.shape[1 + axis]
        at = np.arange(out[axis])[:, None] * stride + np.arange(size) * dilation - before
        low, high = (-before, have + after) if layer.count_padding else (0, have)
        counts.append(((at >= low) & (at < high)).sum(1))
    return np.outer(counts[0], counts[1]).astype(np.float64)


def _window_offsets(layer: Pool, source: Storage) -> NDArray[np.int32]:
    window = layer.window
    rows = np.arange(window.kernel[0]) * window.dilations[0] - window.pads[0]
    columns = np.arange(window.kernel[1]) * window.dilations[1] - window.pads[1]
    return (rows[:, None] * source.pitch + columns).reshape(-1).astype(np.int32)


def _port(tensor: Tensor) -> str:
    dimensions = tensor.shape if tensor.rank == 3 else (tensor.shape[0], tensor.shape[2])[: tensor.rank]
    return f"{{{_text(tensor.name)}, {tensor.rank}, {{{', '.join(map(str, dimensions))}}}, {tensor.size}L}}"


def _real(value: float) -> str:
    if np.isinf(value):
        return "__builtin_inff()" if value > 0 else "-__builtin_inff()"
    return f"{float(np.float32(value)).hex()}f" if value else "0"


def _text(text: str) -> str:
    """A string of C."""
    escaped = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\?' else
        "".join(f"\\{byte:03o}" for byte in char.encode())
        for char in text
    )  # fmt: skip
    return f'"{escaped}"'


def _comment(text: str) -> str:
    """Text that can't end a comment of C."""
    return (
        "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
        .replace("*/", "* /")
        .replace("/*", "/ *")
    )


def _describe(step: Step) -> str:
    shapes = " + ".join("x".join(map(str, storage.tensor.shape)) for storage in step.reads)
    out = "x".join(map(str, step.writes.tensor.shape)) if step.writes else ""
    return f"{step.operator} {step.name}: {shapes} -> {out}"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("c", name).read_text(encoding="utf-8")
