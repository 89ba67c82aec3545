"""A trained network as a function: named arrays in, named arrays out, and nothing else that its outputs depend on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import TrainingError, UsageError
from .state import StateDict, loaded

ROWS = 64
"""Rows of the reference inputs, at most."""

ExampleInputs = Sequence[Any] | Mapping[str, Any] | Tensor | NDArray[Any]
"""A model's arguments: by position, by keyword, or the only one."""


@dataclass(frozen=True)
class Network:
    """A module in eval mode on the CPU, and the names of what it takes and gives."""

    module: nn.Module
    keywords: bool  # whether it takes its inputs by keyword, and not by position
    names: tuple[str, ...] | None = None  # of the outputs, as a user gave them

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, in the order that they were asked for.

        Raises:
            UsageError: the module can't take the inputs, gives something else than tensors with the batch as their
                first axis, or hasn't the outputs that were named.
        """
        try:
            with torch.no_grad(), _modules_called():
                returned = self._call([*inputs], [*inputs.values()])
        except Exception as error:  # a user's network can fail in any way
            raise UsageError(
                f"The model can't take the example inputs: {cause(error)}.",
                "Give one tensor for each argument of its forward, as in training.",
            ) from error
        outputs = self._select(returned)
        rows = len(next(iter(inputs.values())))
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != rows:
                raise UsageError(
                    f"The output {name} of the model is {list(output.shape)}: not a tensor with the batch as its first "
                    f"axis, for {rows} rows.",
                    "Export a module whose forward returns its logits, one row for each row of the inputs.",
                )
        return outputs

    @contextmanager
    def positional(self, input_names: Sequence[str]) -> Iterator[nn.Module]:
        """The module with a forward from tensors by position to a tuple of different tensors, for exporters.

        It is the same module, so that its weights keep their names.
        """
        forward = self.module.forward

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            returned = forward(**dict(zip(input_names, tensors, strict=True))) if self.keywords else forward(*tensors)
            seen = {id(tensor) for tensor in tensors}
            outputs = []
            for output in self._select(returned).values():
                # A graph's outputs are values of their own: neither an input nor twice the same.
                outputs.append(output.clone() if id(output) in seen else output)
                seen.add(id(output))
            return tuple(outputs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(f"input_{index}", kind) for index in range(len(input_names))]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # torch.export reads it
        self.module.forward = call
        try:
            yield self.module
        finally:
            del self.module.forward  # the class has the one from before

    def _call(self, names: Sequence[str], tensors: Sequence[Tensor]) -> Any:
        return self.module(**dict(zip(names, tensors, strict=True))) if self.keywords else self.module(*tensors)

    def _select(self, returned: Any) -> dict[str, Tensor]:
        """The tensors in what a forward returned, by the names that they have or are given."""
        leaves = list(_leaves(returned))
        for path, leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise UsageError(
                    f"The output {'.'.join(path) or 'of the model'} is {type(leaf).__name__}, not a tensor with the "
                    "batch as its first axis.",
                    "Export a module whose forward returns its logits, one row for each row of the inputs.",
                )
        own_names = any(not part.isdecimal() for path, _ in leaves for part in path[:1])
        if not own_names:
            keys = names_of(self.names, "logits", len(leaves))
            return {key: leaf for key, (_, leaf) in zip(keys, leaves, strict=True)}
        outputs = {".".join(path): leaf for path, leaf in leaves}
        if self.names is None:
            return outputs
        unknown = [name for name in self.names if name not in outputs]
        if unknown or len({*self.names}) != len(self.names) or not self.names:
            raise UsageError(
                f"{list(self.names)} doesn't name outputs of the model, which calls them {', '.join(outputs)}.",
                "Name those of them that you want, in any order, or leave output_names out.",
            )
        return {name: outputs[name] for name in self.names}


def network(
    model: nn.Module, state: StateDict, example_inputs: ExampleInputs, output_names: Sequence[str] | None
) -> Network:
    """A copy of `model` with the weights `state`, in float32 on the CPU. Raises `UsageError` for one that has none."""
    try:
        with torch.no_grad():  # TorchScript's copies of parameters else belong to the graph of gradients
            module = copy.deepcopy(model, _computed(model))
    except Exception as error:  # whatever a user's modules hold
        raise UsageError(
            f"The model can't be copied: {cause(error)}.", "Keep what can't be copied outside of the model."
        ) from error
    module = module.to("cpu").float().eval()
    loaded(module, state)
    _settle(module)
    names = None if output_names is None else tuple(output_names)
    return Network(module, isinstance(example_inputs, Mapping), names)


def _settle(module: nn.Module) -> None:
    """Keep what parametrizations give, instead of how: ONNX can't compute each of them.

    Torch's `remove_parametrizations` is no help: a copy shares its class with the original, and it changes the class.
    """
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            values = {name: getattr(part, name).detach() for name in cast(nn.ModuleDict, part.parametrizations)}
            del part._modules["parametrizations"]
            part.__class__ = type(part).__bases__[0]  # what it was before it was parametrized
            for name, value in values.items():
                part.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _computed(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that modules computed from their parameters and keep, as weight norm does.

    Python can't copy these: they are a part of the graph of gradients.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def reference_inputs(
    example_inputs: ExampleInputs, names: Sequence[str] | None, batch_size: int | None
) -> dict[str, Tensor]:
    """The reference inputs by name: copies on the CPU, of at most `ROWS` rows, or of `batch_size` rows exactly.

    Raises:
        UsageError: something else than arrays, without rows, or with different numbers of them.
    """
    if isinstance(example_inputs, Mapping):
        given, keys = [*example_inputs.values()], [str(key) for key in example_inputs]
        if names is not None and list(names) != keys:
            raise UsageError(
                f"input_names are {list(names)}, and the example inputs are named {keys}.", "Leave input_names out."
            )
    else:
        given = [example_inputs] if isinstance(example_inputs, Tensor | np.ndarray) else [*example_inputs]
        keys = names_of(names, "input", len(given))
    rows = batch_size or ROWS
    tensors = []
    for value in given:
        if not isinstance(value, Tensor | np.ndarray):
            raise UsageError(
                f"An example input is {type(value).__name__}; arrays and tensors are inputs of a network.",
                "Give one tensor for each argument of the model's forward, such as example_inputs=(x,).",
            )
        tensor = torch.as_tensor(value).detach()
        if tensor.layout != torch.strided or tensor.is_complex():
            raise UsageError(
                f"An example input is {'complex' if tensor.is_complex() else 'sparse'}; runtimes take dense real ones.",
                "Give it as the network would be served: a dense tensor of real numbers.",
            )
        tensor = tensor[:rows].to("cpu", copy=True).contiguous()
        tensors.append(tensor.float() if tensor.is_floating_point() else tensor)
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(
            "The example inputs don't have the same number of rows, or have none.",
            "Give real samples, with the batch as the first axis of every input.",
        )
    if batch_size is not None and counts != {batch_size}:
        raise UsageError(
            f"There are {counts.pop()} rows of example inputs, fewer than a batch of {batch_size}.",
            "Give a whole batch of real samples.",
        )
    return dict(zip(keys, tensors, strict=True))


def names_of(given: Sequence[str] | None, default: str, count: int) -> list[str]:
    """What `count` inputs or outputs without names of their own are called. Raises `UsageError` for other numbers."""
    if given is None:
        return [default] if count == 1 else [f"{default}_{index}" for index in range(count)]
    if len(given) != count or len(set(given)) != count or isinstance(given, str) or not all(given):
        raise UsageError(
            f"{given if isinstance(given, str) else list(given)} doesn't name {count} "
            f"{'tensor' if count == 1 else 'different tensors'}.",
            "Give one name for each of the model's inputs or outputs, or leave the names out.",
        )
    return list(given)


def require_finite(outputs: Mapping[str, Tensor]) -> None:
    """Refuse outputs that hold NaN or infinity. Raises `TrainingError`."""
    for name, output in outputs.items():
        if not output.isfinite().all():
            raise TrainingError(
                f"The output {name} of a half is not finite on the example inputs.",
                "Look for NaN in these inputs; if there is none, train with a lower learning rate.",
            )


def cause(error: BaseException) -> str:
    """The first line of what is behind an error: the exporters wrap it in several of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every tensor (or what stands in its place) in a structure, with the keys and positions that lead to it.

    Dicts, dataclasses and named tuples have keys; None is nothing, as in the outputs of Transformers.
    """
    if value is None:
        return
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, (*path, key))


@contextmanager
def _modules_called() -> Iterator[None]:
    """Have Transformer layers compute as they do in a graph.

    In eval mode they else take a way of their own, which calls no submodule and gives zeros where a mask hides inputs.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
