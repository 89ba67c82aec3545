"""Which layers are faster in INT8, in an engine that converts activations between INT8 and FP32 layers.

Between two INT8 layers the conversion is part of the operator. Between INT8 and FP32 it is a pass over the activation.
So a layer with few MACs for each value that has to be converted is faster in FP32.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .layers import Layer, find


def faster_in_fp32(model: ir.Model, least_macs: float, keep: Collection[str] = ()) -> list[str]:
    """Return the layers with fewer than `least_macs` MACs for each value converted, by their weights' names.

    Layers in `keep` stay in FP32 anyway, and are not among them. A layer that stays in FP32 adds conversions around its
    neighbours. So layers go one by one, the one with the fewest MACs for a conversion first, until the rest pays.
    """
    layers = list(find(model))
    after = _followers(model, layers)
    before: dict[ir.Node, set[ir.Node]] = {layer.node: set() for layer in layers}
    for node, nodes in after.items():
        for follower in nodes:
            before[follower].add(node)
    chosen = {layer.node: layer for layer in layers if layer.name not in keep}
    while chosen:
        int8 = chosen.keys()
        gains = {node: _gain(layer, before[node] & int8, after[node] & int8) for node, layer in chosen.items()}
        worst = min(gains, key=gains.__getitem__)
        if gains[worst] >= least_macs:
            break
        del chosen[worst]
    return [layer.name for layer in layers if layer.node not in chosen and layer.name not in keep]


def _gain(layer: Layer, before: Collection[ir.Node], after: Collection[ir.Node]) -> float:
    """Return the MACs for each value converted, at one position of the output.

    Around a depthwise convolution every value is converted: the engine keeps its activations in another order than
    those of a matrix product.
    """
    depthwise = layer.groups > 1 and layer.array.shape[layer.inputs] == 1
    read = layer.channels_in if depthwise or not before else 0
    given = layer.channels_out if depthwise or not after else 0
    converted = read + given
    return float(np.count_nonzero(layer.array) / converted) if converted else np.inf


def _followers(model: ir.Model, layers: list[Layer]) -> dict[ir.Node, set[ir.Node]]:
    """Return, for each layer's node, the layers' nodes that read its output, directly or through other operators."""
    nodes = {layer.node for layer in layers}
    readers: dict[ir.Node, set[ir.Node]] = {}  # of a node's outputs
    for node in reversed(model.graph):
        readers[node] = set()
        for user, _ in (use for output in node.outputs for use in output.uses()):
            readers[node] |= {user} if user in nodes else readers.get(user, set())
    return {node: readers[node] for node in nodes}
