"""What the compiler's stages pass on: a network as a list of layers, each of them one loop over memory.

Shapes leave the batch out: (channels, height, width), with 1 for what a tensor doesn't have. A tensor is FP32, or
uint8 that stands for `scale * (value - zero)`.

**Integer arithmetic.** What a layer does to uint8 is defined to the bit, so that every instruction set gives the same
and `reference.py` can say what. `f32` is rounding to FP32 after every single operation (nothing is contracted into a
fused multiply-add), `rne` rounds to the nearest integer, ties to even, and `clip` limits to `low` and `high`:

    Product    clip(rne(f32(f32(f32(sum) * multiplier[channel]) + residual * residual_multiplier)) + zero), where `sum`
               is exact in int32, bias and zero points included; the residual's multiplier has 16 bits, so that its
               product is exact, too (and fused or not gives the same)
    Affine     clip(rne(f32(f32(x * multiplier[channel]) + offset[channel])) + zero)
    Sum        clip(rne(f32(f32((a - a0) * a_multiplier) + f32((b - b0) * b_multiplier))) + zero)
    Scale      clip(rne(f32((a - a0) * (b - b0) * multiplier)) + zero), the integer product being exact
    Average    clip(rne(f32(f32(sum of (x - x0)) * multiplier)) + zero), its multiplier divided by the count
    Table      table[x]

An argument of `rne` beyond ±2^30 is limited to that first, so that it always fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
INFINITY = float("inf")


@dataclass(frozen=True)
class Quantized:
    """uint8 that stands for `scale * (value - zero)`."""

    scale: float
    zero: int


@dataclass(frozen=True)
class Tensor:
    """What passes between layers."""

    name: str
    shape: Shape
    quantized: Quantized | None = None
    rank: int = 3  # of a sample, as outside: (C,), (C, L) or (C, H, W)

    @property
    def size(self) -> int:
        """Values of a sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Window:
    """Which inputs an output of a convolution or pooling reads: in rows and columns."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right


@dataclass(frozen=True)
class Layer:
    """What all layers have: `name` and `operator` as in ONNX, names of the tensors that it reads and writes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Product(Layer):
    """A convolution or a product with a constant matrix; what follows it in the same loop is added and clipped.

    `weights` is (outputs, inputs of a group, *kernel): FP32, or INT8 with `multipliers`. The second input, if any, is
    the residual. With uint8 inputs and `quantized` None on the output, the result is FP32: sum * multiplier.
    """

    weights: NDArray[Any]
    bias: NDArray[Any]  # (outputs,): FP32, or int32 in steps of a product, the input's zero point included
    window: Window = Window()
    groups: int = 1
    low: float = -INFINITY  # in uint8: levels
    high: float = INFINITY
    multipliers: NDArray[np.float32] | None = None  # (outputs,)
    residual: float | None = None  # multiplier of the residual: 1 in FP32, with 16 bits in uint8


@dataclass(frozen=True)
class Pool(Layer):
    """The largest or the average of a window. Padding counts for an average where `count_padding`."""

    kind: Literal["max", "average"]
    window: Window
    count_padding: bool = False
    multiplier: float = 1.0  # of an average in uint8


@dataclass(frozen=True)
class Affine(Layer):
    """`x * multiplier + offset` with constants for each channel, clipped."""

    multipliers: NDArray[np.float32]  # (channels,)
    offsets: NDArray[np.float32]
    low: float = -INFINITY
    high: float = INFINITY


@dataclass(frozen=True)
class Function(Layer):
    """A function of single FP32 values, by its operator, with its parameters."""

    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table(Layer):
    """A function of single uint8 values: (256,) uint8."""

    table: NDArray[np.uint8] = field(default_factory=lambda: np.arange(256, dtype=np.uint8))


@dataclass(frozen=True)
class Binary(Layer):
    """Sum, difference, product or quotient of two tensors, clipped; the second may be (channels, 1, 1)."""

    kind: Literal["add", "sub", "mul", "div"]
    multipliers: tuple[float, float] = (1.0, 1.0)  # in uint8
    low: float = -INFINITY
    high: float = INFINITY


@dataclass(frozen=True)
class Concat(Layer):
    """Tensors joined along their channels; in uint8 each goes through a table to the scale of the output."""

    tables: tuple[NDArray[np.uint8], ...] = ()


@dataclass(frozen=True)
class Reshape(Layer):
    """The same values in the same order, in another shape."""


@dataclass(frozen=True)
class Pad(Layer):
    """A border around rows and columns: (top, left, bottom, right)."""

    pads: tuple[int, int, int, int]
    value: float


@dataclass(frozen=True)
class Softmax(Layer):
    """Softmax over the channels of a tensor that has nothing else, in FP32."""

    logarithm: bool = False


@dataclass(frozen=True)
class Quantize(Layer):
    """From FP32 to uint8: clip(rne(f32(x / scale)) + zero)."""


@dataclass(frozen=True)
class Dequantize(Layer):
    """From uint8 to FP32: f32((x - zero) * scale)."""


AnyLayer: TypeAlias = (
    Product | Pool | Affine | Function | Table | Binary | Concat | Reshape | Pad | Softmax | Quantize | Dequantize
)


@dataclass(frozen=True)
class Network:
    """Layers in order of execution, and the tensors that they read and write, by name."""

    layers: tuple[AnyLayer, ...]
    tensors: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
