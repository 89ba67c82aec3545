"""FLOPs of a network, counted as the AC/DC paper counts them (IST-DASLab/ACDC, utils/flop_utils.py).

A multiplication and an addition are two FLOPs. Convolutions and linear layers cost two for every non-zero weight at
every place where it is used, and one for every bias added. A batch norm costs two for each element, an activation one,
and a pooling as much as its window for each element of its output. Everything else (residual additions, functional
activations) is not counted. A backward pass costs twice the forward pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..records.history import Cost, PhaseRecord
from .layers import PRUNABLE, RECURRENT

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_UNCOUNTED = (nn.Bilinear, nn.modules.conv._ConvTransposeNd)
"""Layers that multiply by weights, and whose FLOPs are not known here."""
_BACKWARD = 2  # times the forward pass


@dataclass(frozen=True)
class Flops:
    """The FLOPs of one sample in a forward pass."""

    uses: dict[str, int]  # how often each weight of a layer is multiplied, by the tensor's name
    weights: dict[str, int]  # number of weights, by the tensor's name
    rest: int  # FLOPs that don't depend on zeros

    def total(self, nonzeros: Mapping[str, int]) -> float:
        """The FLOPs with `nonzeros` weights in the tensors named; in the others all weights count."""
        return self.rest + sum(2 * nonzeros.get(name, self.weights[name]) * uses for name, uses in self.uses.items())


class Unknown(Exception):
    """What a network costs can't be counted; the text says why, as a phrase."""


def count(model: nn.Module, run: Callable[[], object], rows: int) -> Flops:
    """Count the FLOPs of one sample, while `run` calls `model` on `rows` of them. The model stays as it was.

    Raises:
        Unknown: a layer uses its weights in a way that isn't counted.
    """
    uses: dict[str, int] = {}
    weights: dict[str, int] = {}
    rest = 0

    def add(name: str, module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        nonlocal rest
        elements = output.numel() // rows  # of one sample
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
            rest += inputs[0].numel() // rows
        elif isinstance(module, _POOLINGS):
            size = module.kernel_size
            window = math.prod(size) if isinstance(size, tuple) else size ** (output.ndim - 2)
            rest += elements * window
        else:
            raise Unknown(f"{name or 'the model'} ({type(module).__name__}) multiplies weights in a way of its own")

    kinds = (*PRUNABLE, *_NORMS, *_ACTIVATIONS, *_POOLINGS, *_ADAPTIVE, *_UNCOUNTED)

    def add_weight(name: str, weight: Tensor, times: int) -> None:
        nonlocal rest
        if weight.ndim < 2:
            rest += weight.numel() * times
        else:
            uses[name] = uses.get(name, 0) + times
            weights[name] = weight.numel()

    with _hooked(model, kinds, add), _sequences_hooked(model, rows, add_weight):
        run()
    return Flops(uses, weights, rest)


def cost(flops: Flops, phases: Sequence[PhaseRecord], twin: Mapping[str, int] | None = None) -> Cost:
    """The FLOPs of both halves for one sample, in a forward pass and in training.

    A phase counts with the non-zeros that it has at its end, and so does the twin, with `twin` non-zeros by weight.

    Raises:
        Unknown: a weight that was pruned is used in a way that wasn't counted.
    """
    for name in phases[-1].nonzeros:
        if name not in flops.uses:
            raise Unknown(f"{name} is not used by a layer whose FLOPs are counted")
    dense, sparse = flops.total(twin or {}), flops.total(phases[-1].nonzeros)
    *common, final = phases
    passes = 1 + _BACKWARD
    before = sum(passes * flops.total(phase.nonzeros) * (phase.end - phase.start) for phase in common)
    last = passes * (final.end - final.start)
    return Cost(
        dense=dense,
        sparse=sparse,
        training_dense=before + last * dense,
        training_sparse=before + last * sparse,
        training_multiplied=passes * flops.total({}) * final.end,
    )


@contextmanager
def _hooked(model: nn.Module, kinds: tuple[type[nn.Module], ...], hook: Any) -> Iterator[None]:
    """Call `hook(name, module, inputs, output)` for every call of modules of these kinds; the model is in eval mode.

    Inputs are all tensors that were given, by position or keyword. Of several outputs, `output` is the first.
    """

    def call(name: str, module: nn.Module, given: Any, keywords: Any, returned: Any) -> None:
        inputs = [value for value in (*given, *keywords.values()) if isinstance(value, Tensor)]
        outputs = [value for value in tree_leaves(returned) if isinstance(value, Tensor)]
        hook(name, module, inputs, outputs[0])

    handles = [
        module.register_forward_hook(partial(call, name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _sequences_hooked(model: nn.Module, rows: int, add: Callable[[str, Tensor, int], None]) -> Iterator[None]:
    """Call `add(name, tensor, times)` for each parameter of attention and recurrent layers, at every call of them.

    `times` is how often a sample uses it, of the `rows` samples that the model is called with.
    """

    def call(name: str, module: nn.Module, given: Any, keywords: Any, _: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*given, **keywords).arguments
        times = (
            _attention(module, arguments) if isinstance(module, nn.MultiheadAttention) else _steps(module, arguments)
        )
        for leaf, all_rows in times.items():
            add(f"{name}.{leaf}" if name else leaf, _at(module, leaf), all_rows // rows)

    handles = [
        module.register_forward_hook(partial(call, name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, (nn.MultiheadAttention, *RECURRENT))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention(module: nn.MultiheadAttention, arguments: Mapping[str, Any]) -> dict[str, int]:
    """How often a call of attention uses each of its parameters."""
    widths = {"query": module.embed_dim, "key": module.kdim, "value": module.vdim}
    queries, keys, values = (arguments[role].numel() // width for role, width in widths.items())
    times: dict[str, int]
    if not module._qkv_same_embed_dim:
        times = {"q_proj_weight": queries, "k_proj_weight": keys, "v_proj_weight": values}
    elif queries == keys == values:
        times = {"in_proj_weight": queries}
    else:
        raise Unknown("an in_proj_weight is used by sequences of different lengths")
    # Each third of the bias is added once a token.
    biases = {"in_proj_bias": (queries + keys + values) // 3, "out_proj.bias": queries}
    return {
        **times,
        "out_proj.weight": queries,
        **{leaf: n for leaf, n in biases.items() if _at(module, leaf) is not None},
    }


def _steps(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, int]:
    """How often a call of a recurrent layer, or of a cell, uses each of its parameters: once a step."""
    sequence = arguments["input"]
    if not isinstance(sequence, Tensor):
        raise Unknown(f"a {type(module).__name__} takes a {type(sequence).__name__}")
    leaves = (
        module._flat_weights_names
        if isinstance(module, nn.RNNBase)
        else ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    steps = sequence.numel() // int(module.input_size)  # type: ignore[arg-type]
    return {leaf: steps for leaf in leaves if _at(module, leaf) is not None}


def _at(module: nn.Module, path: str) -> Any:
    """The attribute of a module, or of one in it, at a dotted path."""
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
