"""Which layers integers pay for, where an engine converts what goes into a group of them and what comes out.

Between two layers of integers a conversion is part of the product; where one meets floats it is a pass over the
activation. A layer of few products per value that has to be converted is faster in float.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .layers import Layer, find


def faster_in_fp32(model: ir.Model, least_macs: float, keep: Collection[str] = ()) -> list[str]:
    """The layers of a model that INT8 doesn't pay for, by their weights' names, where `keep` stay in FP32 anyway.

    Those are the layers of fewer than `least_macs` MACs for each value that is converted. They are taken out one by
    one, the one with the fewest MACs for a conversion first, until every layer that is left pays.
    """
    everything = list(find(model))
    after = _followers(model, everything)
    before: dict[ir.Node, set[ir.Node]] = {layer.node: set() for layer in everything}
    for node, nodes in after.items():
        for follower in nodes:
            before[follower].add(node)
    chosen = {layer.node: layer for layer in everything if layer.name not in keep}
    while chosen:
        integer = chosen.keys()
        gains = {node: _gain(layer, before[node] & integer, after[node] & integer) for node, layer in chosen.items()}
        worst = min(gains, key=gains.__getitem__)
        if gains[worst] >= least_macs:
            break
        del chosen[worst]
    return [layer.name for layer in everything if layer.node not in chosen and layer.name not in keep]


def _gain(layer: Layer, before: Collection[ir.Node], after: Collection[ir.Node]) -> float:
    """Products for each value converted, at one position of the output.

    Around a depthwise convolution everything is converted: the engine has it lie in another order than a product of
    matrices.
    """
    depthwise = layer.groups > 1 and layer.array.shape[layer.inputs] == 1
    read = layer.channels_in if depthwise or not before else 0
    given = layer.channels_out if depthwise or not after else 0
    converted = read + given
    return float(np.count_nonzero(layer.array) / converted) if converted else np.inf


def _followers(model: ir.Model, layers: list[Layer]) -> dict[ir.Node, set[ir.Node]]:
    """For each layer's node, those of the layers that read what it gives, through whatever is no layer."""
    nodes = {layer.node for layer in layers}
    readers: dict[ir.Node, set[ir.Node]] = {}  # of what a node gives
    for node in reversed(model.graph):
        readers[node] = set()
        for user, _ in (use for output in node.outputs for use in output.uses()):
            readers[node] |= {user} if user in nodes else readers.get(user, set())
    return {node: readers[node] for node in nodes}
