"""Whether each row of a network's outputs depends on the same row of its inputs, and on nothing else.

A runtime is handed weights and a graph. What else an output depends on is lost: random numbers that are drawn in eval
mode, buffers that change from call to call, other rows of the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UsageError
from .network import Network

_SAME = 1e-6
"""Share of the largest magnitude that two runs of the same network on the same rows may differ by."""

_ROUNDED = 1e-3
"""The same for a row that is computed alone: kernels for another number of rows add up in another order."""

_ALONE = 8
"""Rows that are computed alone, at most."""

Tensors = Mapping[str, Tensor]


def check(network: Network, inputs: Tensors, outputs: Tensors, *, fixed_batch: bool) -> None:
    """Refuse a network whose rows depend on something else; its buffers stay as they were.

    Args:
        outputs: what the network gave for `inputs`.
        fixed_batch: whether outputs may depend on other rows, because the graph is for one batch size.

    Raises:
        UsageError: the outputs differ in a second run, or for a row alone; the cause is named.
    """
    with restored(network.module) as changed:
        same = all(_agree(outputs, network(inputs)) for _ in range(2))  # a buffer shows in the second of them
        buffer = next(iter(changed()), None)
        if not same:
            reason = f"its forward changes the buffer {buffer}" if buffer else _origin(network, inputs, inputs)
            raise UsageError(
                f"The network gives other outputs for the same inputs: {reason}.",
                "In eval mode its forward may depend on its inputs alone: draw random numbers and change buffers only "
                "where self.training is True.",
            )
        if buffer:
            warnings.warn(
                f"The forward of the network changes the buffer {buffer} in eval mode. The pair keeps its value from "
                "the end of training.",
                stacklevel=2,
            )
        if not fixed_batch:
            _check_rows(network, inputs, outputs)


def _check_rows(network: Network, inputs: Tensors, outputs: Tensors) -> None:
    """Compare rows computed alone with the same rows computed together."""
    for row in range(min(_ALONE, len(next(iter(inputs.values()))))):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        reason = None
        try:
            if not _agree(outputs, network(alone), row):
                reason = _origin(network, inputs, alone, row)
        except UsageError as error:
            reason = f"for a batch of one, {error.message[0].lower()}{error.message[1:].rstrip('.')}"
        if reason:
            raise UsageError(
                f"The outputs for a row depend on the batch that it is in: {reason}.",
                "Give save_pair a batch_size: the pair then holds for batches of exactly so many rows. Or change the "
                "network (a batch norm needs track_running_stats=True).",
            )


@contextmanager
def restored(module: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Take buffers back to their values at the end; gives a function that names those that have others now."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield lambda: [name for name, now in module.named_buffers() if not torch.equal(now, before[name])]
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])


@dataclass(frozen=True)
class _Call:
    """A call of a submodule: its inputs and outputs, as far as they are tensors, by their places."""

    module: str
    inputs: Tensors
    outputs: Tensors


def _origin(network: Network, inputs: Tensors, others: Tensors, row: int | None = None) -> str:
    """Name the first submodule that gives other outputs for the same inputs, or what lies before the first difference.

    Args:
        row: the row of `inputs` that `others` holds alone; None where both hold the same rows.
    """
    rows = len(next(iter(inputs.values())))
    for together, alone in zip(_calls(network, inputs), _calls(network, others), strict=False):
        if together.module != alone.module:
            break
        if _agree(_batched(together.outputs, rows), alone.outputs, row):
            continue
        module = network.module.get_submodule(together.module)
        name = f"{together.module or 'the model itself'} ({type(module).__name__})"
        if not _agree(_batched(together.inputs, rows), alone.inputs, row):
            return f"an operation before {name}"
        if getattr(module, "running_mean", "none") is None:
            return f"{name} has no running statistics"
        return f"an operation in {name}"
    return "an operation in the model's own forward"


def _calls(network: Network, inputs: Tensors) -> list[_Call]:
    """The calls of all submodules, in the order in which they end: what a module calls ends before it does."""
    calls: list[_Call] = []

    def record(name: str, given: object, returned: object) -> None:
        calls.append(_Call(name, _tensors(given), _tensors(returned)))

    handles = [
        module.register_forward_hook(lambda _, given, returned, name=name: record(name, given, returned))
        for name, module in network.module.named_modules()
    ]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _tensors(value: object) -> Tensors:
    """Copies of the tensors in a structure, by their places: a later operation may work in place."""
    return {str(at): leaf.detach().clone() for at, leaf in enumerate(tree_leaves(value)) if isinstance(leaf, Tensor)}


def _batched(tensors: Tensors, rows: int) -> Tensors:
    """Those that have the batch as their first axis."""
    return {name: tensor for name, tensor in tensors.items() if tensor.ndim and len(tensor) == rows}


def _agree(together: Tensors, given: Tensors, row: int | None = None) -> bool:
    """Whether `given` is the same as all rows `together`, or as one row of them, up to rounding."""
    tolerance = _SAME if row is None else _ROUNDED
    for name in together.keys() & given.keys():
        expected = together[name] if row is None else together[name][row : row + 1]
        if expected.shape != given[name].shape:
            return False
        if not expected.is_floating_point():
            if not torch.equal(expected, given[name]):
                return False
        # The whole tensor is the measure: what is nearly zero in this row may be a difference of large values.
        elif expected.numel() and (expected - given[name]).abs().max() > tolerance * together[name].abs().max():
            return False
    return True
