"""The INT8 form for compilers that run a whole network in integers: every activation between operators is uint8.

    x -> QuantizeLinear -> DequantizeLinear -> operators that run as one (`fusing`) -> QuantizeLinear -> ...

An activation has a scale and a zero point, so that 0 stays exactly 0: behind a ReLU the zero point is 0. What keeps
values, as a MaxPool does, keeps scale and zero point. What only a Concat reads takes those of the Concat's output, so
that joining is copying. Weights are int8, symmetric, with a scale for each output channel; biases are FP32.

What a compiler has no integer form for stays in FP32, and so do layers that are kept there. The network's outputs are
FP32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ....errors import GraphError
from .. import activations, weights
from ..calibration import Calibration, Range
from ..fusing import MOVING, Fused, fuse
from ..layers import Layer, add_constant, constant

_LEVELS = 255
_MOST = 2**30
"""The greatest bias in int32, in steps of a product of scales: as much again is left for what it is added to."""

_OLDEST = 13  # opset in which DequantizeLinear takes a scale for each channel


class _Uint8(NamedTuple):
    """Constants of an activation: a level of it stands for scale * (level - zero)."""

    scale: ir.Value
    zero: ir.Value


def watched(model: ir.Model, keep: Collection[str] = ()) -> list[ir.Value]:
    """Return the activations that are quantized: calibration has to watch them. Shapes are inferred first."""
    return _Plan(model, keep).quantized


def run(model: ir.Model, calibration: Calibration, keep: Collection[str] = (), weight_bits: int = 8) -> None:
    """Quantize a model in place, except the layers whose weights are named in `keep`.

    Raises:
        GraphError: an activation was not calibrated, or the opset is older than 13.
    """
    plan = _Plan(model, keep)
    opset = model.opset_imports.get("", 0)
    if plan.quantized and opset < _OLDEST:
        raise GraphError(
            f"The graph uses opset {opset}, which has no scale for each channel.",
            f"Export it with opset {_OLDEST} or a newer one.",
        )
    chosen = _Choice(model, plan, calibration).all()
    layers = [(layer, layer.activation) for layer in plan.layers]
    for value in plan.quantized:
        _quantize(model, plan, value, chosen[value])
    levels = 2 ** (weight_bits - 1) - 1
    for layer, value in layers:
        scales = _weight_scales(layer, levels, float(constant(chosen[value].scale)))
        weights.quantize(model, layer, scales, calibration.mean_of(value.name or "", layer.name), levels)
    ir.passes.common.RemoveUnusedNodesPass()(model)


class _Plan:
    """Which operators run in integers, and which activations are uint8 for that."""

    def __init__(self, model: ir.Model, keep: Collection[str]) -> None:
        fused = fuse(model)
        self._of = {node: operators for operators in fused for node in operators.nodes}
        self._integer = self._spread([it for it in fused if it.layer is not None and it.layer.name not in keep])
        self.layers = [it.layer for it in fused if it.layer is not None and it in self._integer]
        self.quantized = list(dict.fromkeys(value for it in fused if it in self._integer for value in it.reads))

    def _spread(self, layers: list[Fused]) -> set[Fused]:
        """The layers that run in integers; and what is no layer, where what is beside it runs in integers."""
        integer, open_ = set(layers), layers
        while open_:
            operators = open_.pop()
            nodes = (*(value.producer() for value in operators.reads), *operators.writes.consumers())
            beside = {self._of[node] for node in nodes if node in self._of}
            new = {it for it in beside if it.layer is None} - integer
            integer |= new
            open_ += new
        return integer

    def producer(self, value: ir.Value) -> Fused | None:
        """What makes a value in integers; None for what is made in FP32, and for an input of the graph."""
        node = value.producer()
        return self.running(node) if node is not None else None

    def running(self, node: ir.Node) -> Fused | None:
        """What an operator runs in, in integers; None for one in FP32."""
        operators = self._of.get(node)
        return operators if operators in self._integer else None


class _Choice:
    """Chooses scale and zero point of a plan's activations."""

    def __init__(self, model: ir.Model, plan: _Plan, calibration: Calibration) -> None:
        self.model, self.plan, self.calibration = model, plan, calibration

    def all(self) -> dict[ir.Value, _Uint8]:
        """Return them for each activation. Those that are shared are the same constants."""
        owners = {value: self._owner(value) for value in self.plan.quantized}
        made = {owner: self._add(owner) for owner in dict.fromkeys(owners.values())}
        return {value: made[owner] for value, owner in owners.items()}

    def _owner(self, value: ir.Value) -> ir.Value:
        """The activation whose scale and zero point a value has."""
        while True:
            operators = self.plan.producer(value)
            if operators is not None and operators.keeps_values:
                (value,) = operators.reads
            elif (joined := self._joined(value)) is not None:
                value = joined
            else:
                return value

    def _joined(self, value: ir.Value) -> ir.Value | None:
        """The output of the one Concat that reads a value, where it can have that one's scale and zero point.

        A value that is never below 0 keeps a zero point of 0.
        """
        readers = {self.plan.running(node) for node in value.consumers()}
        operators = readers.pop() if len(readers) == 1 else None
        if operators is None or operators.operator != "Concat":
            return None
        joined = operators.writes
        if joined not in self.plan.quantized or (self._range(value).low == 0 > self._range(joined).low):
            return None
        return joined

    def _add(self, value: ir.Value) -> _Uint8:
        limits, name = self._range(value), value.name or "x"
        scale = np.float32(max((limits.high - limits.low) / _LEVELS, float(np.finfo(np.float32).tiny)))
        zero = np.uint8(np.clip(round(-limits.low / float(scale)), 0, _LEVELS))
        return _Uint8(
            add_constant(self.model, f"{name}_scale", scale), add_constant(self.model, f"{name}_zero_point", zero)
        )

    def _range(self, value: ir.Value) -> Range:
        """The calibrated range: of the value, or of the same values as they are moved on."""
        same = [value]
        for moved in same:
            if moved.name in self.calibration.ranges:
                return self.calibration.ranges[moved.name]
            same += [node.outputs[0] for node in moved.consumers() if node.op_type in MOVING]
        return self.calibration.range_of(value.name or "", ", ".join(node.op_type for node in value.consumers()))


def _quantize(model: ir.Model, plan: _Plan, value: ir.Value, chosen: _Uint8) -> None:
    """Let operators in integers read a value as uint8. If it is made in integers, all read it so."""
    readers = list(value.uses())
    dequantized = activations.quantize(model, value, *chosen)
    for node, at in readers:
        if plan.producer(value) is not None or plan.running(node) is not None:
            node.replace_input_with(at, dequantized)


def _weight_scales(layer: Layer, levels: int, step: float) -> NDArray[np.float32]:
    """Return a scale for each output channel of a layer whose activation has the scale `step`, (channels,).

    A bias in steps of a product of both scales fits into int32. Where its channel's scale is larger for that, the
    weights hardly count beside it. A channel that is zero throughout has nothing but its bias.
    """
    scales = np.abs(layer.matrix()).max(axis=1).astype(np.float64) / levels
    if layer.bias is not None:
        scales = np.maximum(scales, np.abs(constant(layer.bias).astype(np.float64)).reshape(-1) / (step * _MOST))
    return np.where(scales * min(step, 1) >= np.finfo(np.float32).tiny, scales, 1).astype(np.float32)
