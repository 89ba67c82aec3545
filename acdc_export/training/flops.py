"""FLOPs of a network, counted as the AC/DC paper counts them (IST-DASLab/ACDC, utils/flop_utils.py).

A multiplication and an addition are two. Convolutions and linear layers cost two for every non-zero weight at every
place where it is used, and one for every bias added; a batch norm two for each element, an activation one, a pooling
as much as its window for each element it gives. What is no module of these kinds (residual additions, functional
activations) is not counted. A backward pass costs twice the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..records.history import Cost, PhaseRecord
from .layers import PRUNABLE

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_BACKWARD = 2


@dataclass(frozen=True)
class Flops:
    """What one sample costs in a forward pass."""

    uses: dict[str, int]  # how often each weight of a layer is multiplied, by the weight's name
    weights: dict[str, int]  # how many it has
    rest: int  # FLOPs that don't depend on zeros

    def total(self, nonzeros: Mapping[str, int]) -> float:
        """FLOPs with so many non-zero weights in the layers named; all weights count in the others."""
        return self.rest + sum(2 * nonzeros.get(name, self.weights[name]) * uses for name, uses in self.uses.items())


@torch.no_grad()
def count(model: nn.Module, inputs: Sequence[Tensor]) -> Flops:
    """What one sample costs; `inputs` are the model's, of one row or more. The model is left as it was."""
    uses: dict[str, int] = {}
    weights: dict[str, int] = {}
    rest = 0

    def see(name: str, module: nn.Module, given: Any, output: Any) -> None:
        nonlocal rest
        elements = math.prod(output.shape[1:])  # of one sample
        if isinstance(module, PRUNABLE):
            key = f"{name}.weight" if name else "weight"
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            uses[key] = uses.get(key, 0) + elements // channels
            weights[key] = module.weight.numel()
            rest += elements if module.bias is not None else 0
        elif isinstance(module, _NORMS):
            rest += 2 * elements
        elif isinstance(module, _ACTIVATIONS):
            rest += elements
        elif isinstance(module, _ADAPTIVE):
            rest += math.prod(given[0].shape[1:])
        else:
            size = module.kernel_size
            window = math.prod(size) if isinstance(size, tuple) else size ** (output.ndim - 2)
            rest += elements * window

    counted = (*PRUNABLE, *_NORMS, *_ACTIVATIONS, *_POOLINGS, *_ADAPTIVE)
    with _hooked(model, counted, see):
        model(*(tensor[:1] for tensor in inputs))
    return Flops(uses, weights, rest)


def cost(flops: Flops, phases: Sequence[PhaseRecord]) -> Cost:
    """What both halves cost, in training (their phases, each with its non-zeros at its end) and afterwards."""
    dense, sparse = flops.total({}), flops.total(phases[-1].nonzeros)
    *common, final = phases
    passes = 1 + _BACKWARD
    before = sum(passes * flops.total(phase.nonzeros) * (phase.end - phase.start) for phase in common)
    last = passes * (final.end - final.start)
    return Cost(
        dense=dense,
        sparse=sparse,
        training_dense=before + last * dense,
        training_sparse=before + last * sparse,
        training_multiplied=passes * dense * final.end,
    )


@contextmanager
def _hooked(model: nn.Module, kinds: tuple[type[nn.Module], ...], see: Any) -> Iterator[None]:
    """Let `see(name, module, inputs, output)` know of every call of these modules; the model in eval mode meanwhile."""
    handles = [
        module.register_forward_hook(lambda module, given, output, name=name: see(name, module, given, output))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
