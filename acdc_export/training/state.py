"""State dicts: what modules hold by name, the versions of these modules, and buffers that are not persistent.

Modules that changed their layout keep a version in the dict's `_metadata`, and convert older weights when they are
loaded. Weights whose dict lost its versions are converted once too often.

Buffers that are not persistent belong to what a network computes, but not to its state dict. They are kept beside it,
in `_beside`.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

StateDict = Mapping[str, Any]
"""Tensors by name, and what modules keep by `get_extra_state`."""

_KEY = "torch_metadata"


def taken(module: nn.Module) -> StateDict:
    """Copies, on the CPU, of all that a module holds."""
    state = module.state_dict()
    whole = OrderedDict(state)
    persistent = {id(value) for value in _persistent(module)}
    vars(whole)["_beside"] = {name: value for name, value in module.named_buffers() if id(value) not in persistent}
    return changed(versioned(whole, state), lambda value: value.detach().to("cpu", copy=True))


def changed(state: StateDict, change: Callable[[Tensor], Tensor]) -> StateDict:
    """A copy of a state dict, its tensors after `change`."""

    def copied(values: Mapping[str, Any]) -> OrderedDict[str, Any]:
        return OrderedDict(
            (name, change(value) if isinstance(value, Tensor) else copy.deepcopy(value))
            for name, value in values.items()
        )

    result = copied(state)
    vars(result)["_beside"] = copied(getattr(state, "_beside", {}))
    return versioned(result, state)


@torch.no_grad()
def loaded(module: nn.Module, state: StateDict, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Load `state` into a module of the same kind, and then set its tensors to exactly `tensors`, by name.

    These are by default the state's own, and the buffers beside it. What the state doesn't hold stays as it is.

    Loading isn't strict: hooks may miss keys that never were there. Torch's `remove_spectral_norm` leaves such a hook.
    """
    module.load_state_dict(versioned(OrderedDict({**module.state_dict(), **state}), state), strict=False)
    if tensors is None:
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= getattr(state, "_beside", {})
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in tensors.items():
        if name in parameters:
            parameters[name].copy_(value)
        else:
            _set_buffer(module, name, value)


def _set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a buffer to a copy of `value`, in place where it has the same shape; nothing where there is none."""
    owner, _, leaf = name.rpartition(".")
    try:
        buffers = module.get_submodule(owner)._buffers
    except AttributeError:
        return  # a name of a state dict of its own
    current = buffers.get(leaf)
    if current is not None and current.shape == value.shape:
        current.copy_(value)
    elif leaf in buffers:
        like = next((tensor for tensor in (current, *module.parameters()) if tensor is not None), value)
        buffers[leaf] = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype, copy=True)


def save(state: StateDict, path: Path) -> None:
    """Write the tensors of a state dict as safetensors. The versions of its modules stand in the header, as JSON."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    save_file(tensors, path, metadata={_KEY: json.dumps(getattr(state, "_metadata", {}))})


def read(path: str | Path) -> StateDict:
    """Read a half's state dict from its `.safetensors`, as `load_state_dict` wants it.

    Raises:
        OSError, SafetensorError: the file can't be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(_KEY)
    result = OrderedDict(load_file(path))
    if metadata:
        vars(result)["_metadata"] = OrderedDict(json.loads(metadata))
    return result


def portable(state: StateDict) -> StateDict:
    """A state dict as it is stored: each tensor with memory of its own, floats as float32."""
    return changed(
        state,
        lambda value: (value.float() if value.is_floating_point() else value).clone(
            memory_format=torch.contiguous_format
        ),
    )


def versioned(state: OrderedDict[str, Any], other: Any) -> OrderedDict[str, Any]:
    """The state dict `state`, with the versions of the modules that are in `other`, where it has any."""
    if hasattr(other, "_metadata"):  # modules may give plain dicts
        vars(state)["_metadata"] = copy.deepcopy(other._metadata)  # as torch itself keeps it
    return state


def _persistent(module: nn.Module) -> list[Tensor]:
    return [
        buffer
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
    ]
