"""The layers of `layers.py` in numpy: what a library has to compute, integers to the bit.

It is slow, and as plain as can be: tests compare libraries with it. FP32 sums are taken in double precision, since
their order is nobody's promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .layers import (
    Affine,
    AnyLayer,
    Binary,
    Concat,
    Dequantize,
    Function,
    Network,
    Pad,
    Pool,
    Product,
    Quantize,
    Quantized,
    Reshape,
    Softmax,
    Table,
    Tensor,
    Window,
)

Array = NDArray[Any]
_LIMIT = np.float32(2.0**30)


def run(network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of a network for a batch: arrays of shape (batch, *sample), FP32, by name."""
    with np.errstate(all="ignore"):
        values = compute(network, inputs)
    return {name: _outside(values[name], network.tensors[name]) for name in network.outputs}


def compute(network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return all tensors of a network for a batch: (batch, channels, height, width), FP32 or uint8, by name."""
    values = {
        name: np.asarray(inputs[name], np.float32).reshape(-1, *network.tensors[name].shape) for name in network.inputs
    }
    for layer in network.layers:
        given = [values[name] for name in layer.inputs]
        tensors = [network.tensors[name] for name in layer.inputs]
        values[layer.output] = _layer(layer, given, tensors, network.tensors[layer.output])
    return values


def _outside(values: Array, tensor: Tensor) -> Array:
    channels, height, width = tensor.shape
    sample = {1: (channels,), 2: (channels, width), 3: (channels, height, width)}[tensor.rank]
    return values.reshape(len(values), *sample)


def _layer(layer: AnyLayer, given: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    match layer:
        case Product():
            return _product(layer, given, tensors[0], out)
        case Pool():
            return _pool(layer, given[0], tensors[0], out)
        case Affine():
            return _affine(layer, given[0], out)
        case Function():
            return _function(layer, given[0])
        case Table():
            levels: Array = layer.table[given[0]]
            return levels
        case Binary():
            return _binary(layer, given, tensors, out)
        case Concat():
            tables = layer.tables or (None,) * len(given)
            return np.concatenate([x if t is None else t[x] for x, t in zip(given, tables, strict=True)], axis=1)
        case Reshape():
            return given[0].reshape(-1, *out.shape)
        case Pad():
            return _padded(given[0], layer.pads, layer.value)
        case Softmax():
            return _softmax(layer, given[0])
        case Quantize():
            assert out.quantized is not None
            return _levels(given[0] / np.float32(out.quantized.scale), out.quantized.zero)
        case Dequantize():
            quantized = _quantized(tensors[0])
            return (given[0].astype(np.int32) - quantized.zero).astype(np.float32) * np.float32(quantized.scale)


def _quantized(tensor: Tensor) -> Quantized:
    assert tensor.quantized is not None
    return tensor.quantized


def _levels(values: Array, zero: int, low: float = 0.0, high: float = 255.0) -> Array:
    """clip(rne(values) + zero). What is not a number counts as the least one."""
    limited = np.where(values > -_LIMIT, np.minimum(values, _LIMIT), -_LIMIT)
    return np.clip(np.rint(limited).astype(np.int64) + zero, low, high).astype(np.uint8)


def _clipped(values: Array, low: float, high: float) -> Array:
    return np.clip(values, np.float32(low), np.float32(high)) if low > -np.inf or high < np.inf else values


def _across(values: Array) -> Array:
    """(channels,) to what is broadcast over (batch, channels, height, width)."""
    return values.reshape(1, -1, 1, 1)


def _padded(values: Array, pads: tuple[int, int, int, int], value: float) -> Array:
    top, left, bottom, right = pads
    return np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=values.dtype.type(value))


def _windows(values: Array, window: Window, out: Tensor, padding: float) -> Array:
    """What each output reads: (batch, channels, rows, columns, *kernel), as a view where it can be."""
    spans = [(size - 1) * step + 1 for size, step in zip(window.kernel, window.dilations, strict=True)]
    top, left = window.pads[:2]
    bottom, right = (
        max((count - 1) * stride + span - before - have, 0)
        for count, stride, span, before, have in zip(
            out.shape[1:], window.strides, spans, (top, left), values.shape[2:], strict=True
        )
    )
    padded = _padded(values, (top, left, bottom, right), padding)
    views = sliding_window_view(padded, spans, axis=(2, 3))
    rows, columns = (
        slice(0, count * stride, stride) for count, stride in zip(out.shape[1:], window.strides, strict=True)
    )
    chosen: Array = views[:, :, rows, columns, :: window.dilations[0], :: window.dilations[1]]
    return chosen


def _product(layer: Product, given: list[Array], tensor: Tensor, out: Tensor) -> Array:
    integer = tensor.quantized is not None
    outputs, inputs = layer.weights.shape[:2]
    each = outputs // layer.groups
    padding = _quantized(tensor).zero if integer else 0.0
    windows = _windows(given[0], layer.window, out, padding).astype(np.float64)
    sums = np.empty((len(given[0]), *out.shape))
    for group in range(layer.groups):
        to, of = slice(group * each, (group + 1) * each), slice(group * inputs, (group + 1) * inputs)
        products = np.tensordot(windows[:, of], layer.weights[to].astype(np.float64), ([1, 4, 5], [1, 2, 3]))
        sums[:, to] = np.moveaxis(products, -1, 1)
    sums += _across(layer.bias.astype(np.float64))
    if not integer:
        values = sums if layer.residual is None else sums + given[1]
        return _clipped(values.astype(np.float32), layer.low, layer.high)
    assert layer.multipliers is not None
    scaled = sums.astype(np.float32) * _across(layer.multipliers)  # integers below 2^53: one rounding
    if out.quantized is None:
        return _clipped(scaled, layer.low, layer.high)
    if layer.residual is not None:
        scaled = scaled + given[1].astype(np.float32) * np.float32(layer.residual)  # the product is exact
    return _levels(scaled, out.quantized.zero, layer.low, layer.high)


def _pool(layer: Pool, x: Array, tensor: Tensor, out: Tensor) -> Array:
    if layer.kind == "max":
        least = -np.inf if tensor.quantized is None else 0
        largest: Array = _windows(x, layer.window, out, least).max(axis=(4, 5))
        return largest
    zero = 0 if tensor.quantized is None else tensor.quantized.zero
    sums: Array = (_windows(x, layer.window, out, zero).astype(np.float64) - zero).sum(axis=(4, 5))
    inside = np.ones((1, 1, *tensor.shape[1:]))
    top, left, bottom, right = layer.window.pads
    if layer.count_padding:
        inside = _padded(inside, (top, left, bottom, right), 1.0)
    window = layer.window if not layer.count_padding else _without_pads(layer.window)
    counts: Array = _windows(inside, window, out, 0.0).sum(axis=(4, 5))
    if out.quantized is None:
        return (sums / counts).astype(np.float32)
    multipliers = np.float32(layer.multiplier) / counts.astype(np.float32)
    return _levels(sums.astype(np.float32) * multipliers, out.quantized.zero)


def _without_pads(window: Window) -> Window:
    return Window(window.kernel, window.strides, window.dilations)


def _affine(layer: Affine, x: Array, out: Tensor) -> Array:
    values = x.astype(np.float32) * _across(layer.multipliers) + _across(layer.offsets)
    if out.quantized is None:
        return _clipped(values, layer.low, layer.high)
    return _levels(values, out.quantized.zero, layer.low, layer.high)


def _binary(layer: Binary, given: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    if out.quantized is None:
        operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[layer.kind]
        computed: Array = operation(*given)
        return _clipped(computed, layer.low, layer.high)
    a, b = (values.astype(np.int32) - _quantized(tensor).zero for values, tensor in zip(given, tensors, strict=True))
    multiplier, other = map(np.float32, layer.multipliers)
    if layer.kind == "mul":
        values = (a * b).astype(np.float32) * multiplier
    else:
        values = a.astype(np.float32) * multiplier + b.astype(np.float32) * other
    return _levels(values, out.quantized.zero, layer.low, layer.high)


def _softmax(layer: Softmax, x: Array) -> Array:
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    values: Array = logarithms if layer.logarithm else np.exp(logarithms)
    return values.astype(np.float32)


def _error_function(x: Array) -> Array:
    values: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return values


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Identity": lambda x: x,
    "Clip": lambda x, low, high: np.clip(x, low, high),
    "LeakyRelu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Silu": lambda x: x / (1 + np.exp(-x)),
    "Gelu": lambda x: 0.5 * x * (1 + _error_function(x / math.sqrt(2))),
    "GeluTanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "Tanh": np.tanh,
    "Erf": _error_function,
    "Elu": lambda x, alpha: np.where(x < 0, alpha * np.expm1(x), x),
    "Exp": np.exp,
    "Sqrt": np.sqrt,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Abs": np.abs,
    "Neg": np.negative,
}


def _function(layer: Function, x: Array) -> Array:
    return _FUNCTIONS[layer.operator](x.astype(np.float64), *layer.parameters).astype(np.float32)
