"""Cross-layer equalization: the channels between two layers are rescaled until both have weights of like ranges.

Where a weight has one scale for all of its channels, the largest channel decides it, and small channels are left with
few levels. relu(s x) = s relu(x) for s > 0, so a factor can move from a layer's output channel to the next layer's
input channel. The network computes what it did before (Nagel et al. 2019, arXiv 1906.04721, section 4.1), and zeros
stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .layers import Layer, constant, find, is_only, replace_constant

_BETWEEN = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Dropout", "Identity"}
"""Operators f with f(s x) = s f(x) for each channel."""

_ROUNDS = 10  # a layer is in up to two pairs, so one round doesn't settle them
_ENOUGH = 1.01  # a round that moves no channel by a larger factor was the last


def run(model: ir.Model) -> int:
    """Equalize a model in place; its batch norms must be folded. Returns how many pairs of layers there were."""
    pairs = list(_pairs(model))
    for _ in range(_ROUNDS):
        moved = [_equalize(before, after) for before, after in pairs]
        if max(moved, default=1.0) <= _ENOUGH:
            break
    return len(pairs)


def _pairs(model: ir.Model) -> Iterator[tuple[Layer, Layer]]:
    by_node = {layer.node: layer for layer in find(model)}
    for layer in by_node.values():
        value = layer.node.outputs[0]
        bias = layer.bias
        if not is_only(layer.weight) or (bias is not None and not is_only(bias)):
            continue
        while is_only(value):
            ((node, at),) = value.uses()
            following = by_node.get(node)
            if following is not None and at == 0 and is_only(following.weight) and _fits(layer, following):
                yield layer, following
            if node.op_type not in _BETWEEN and not _is_flattening(node) and not _is_spatial_mean(node):
                break
            value = node.outputs[0]


def _fits(before: Layer, after: Layer) -> bool:
    """Whether each output channel of one layer goes into as many input channels of the other."""
    channels = before.array.shape[before.outputs]
    return bool(after.array.shape[after.inputs] * after.groups % channels == 0)


def _is_flattening(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return node.op_type == "Flatten" and (axis is None or axis.as_int() == 1)


def _is_spatial_mean(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    axes = node.inputs[1].const_value
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or shape is None:
        return False
    return {int(axis) % len(shape) for axis in axes.numpy().reshape(-1)} == {2, 3}


def _equalize(before: Layer, after: Layer) -> float:
    """Move factors between two layers. Returns the largest of the factors and their inverses."""
    rows = np.abs(before.matrix()).max(axis=1)
    channels, reach = len(rows), _by_input_channel(after)
    repeated = len(reach) // channels  # Flatten turns each channel into several
    columns = reach.reshape(channels, repeated).max(axis=1)
    alive = (rows > 0) & (columns > 0)
    factors = np.ones(channels, dtype=np.float32)
    factors[alive] = np.sqrt(rows[alive] / columns[alive])
    _scale(before.weight, before.outputs, (1 / factors).astype(np.float32))
    if before.bias is not None:
        replace_constant(before.bias, constant(before.bias) / factors)
    _scale_inputs(after, np.repeat(factors, repeated))
    return float(np.maximum(factors, 1 / factors).max())


def _by_input_channel(layer: Layer) -> NDArray[np.float32]:
    """Return the largest magnitude of the weights that read each input channel, (channels,)."""
    magnitudes = np.moveaxis(np.abs(layer.array), (layer.outputs, layer.inputs), (0, 1))
    by_group = magnitudes.reshape(layer.groups, -1, *magnitudes.shape[1:])  # (groups, outputs, inputs, ...)
    reach: NDArray[np.float32] = np.moveaxis(by_group, 2, 1).reshape(by_group.shape[0] * by_group.shape[2], -1)
    return reach.max(axis=1)  # type: ignore[no-any-return]


def _scale(weight: ir.Value, axis: int, factors: NDArray[np.float32]) -> None:
    array = constant(weight)
    replace_constant(weight, array * factors.reshape([-1 if at == axis else 1 for at in range(array.ndim)]))


def _scale_inputs(layer: Layer, factors: NDArray[np.float32]) -> None:
    if layer.groups == 1:
        _scale(layer.weight, layer.inputs, factors)
        return
    array = layer.array  # of a Conv: (outputs, inputs of a group, ...)
    grouped = array.reshape(layer.groups, -1, *array.shape[1:])
    by_group = factors.reshape(layer.groups, 1, array.shape[1], *[1] * (array.ndim - 2))
    replace_constant(layer.weight, (grouped * by_group).reshape(array.shape))
