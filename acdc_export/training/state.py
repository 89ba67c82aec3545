"""State dicts: tensors by name, and the versions of the modules that they are from.

Modules that changed their layout keep a version in the dict's `_metadata`, and convert older weights when they are
loaded. Weights whose dict lost its versions are converted once too often.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]

_KEY = "torch_metadata"


def changed(state: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> StateDict:
    """The tensors of a state dict after `change`, with the versions of the modules. What is no tensor is left out."""
    result = OrderedDict((name, change(value)) for name, value in state.items() if isinstance(value, Tensor))
    return _with_metadata(result, getattr(state, "_metadata", None))


def loaded(module: nn.Module, state: StateDict) -> None:
    """Load `state` into a module. What it doesn't hold stays as it is."""
    whole = OrderedDict({**module.state_dict(), **state})
    module.load_state_dict(_with_metadata(whole, getattr(state, "_metadata", None)))


def save(state: StateDict, path: Path) -> None:
    """Write a state dict as safetensors. The versions of its modules stand in the header, as JSON."""
    save_file(dict(state), path, metadata={_KEY: json.dumps(getattr(state, "_metadata", {}))})


def read(path: str | Path) -> StateDict:
    """Read a half's state dict from its `.safetensors`, as `load_state_dict` wants it.

    Raises:
        OSError, SafetensorError: the file can't be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(_KEY)
    return _with_metadata(OrderedDict(load_file(path)), json.loads(metadata) if metadata else None)


def portable(state: Mapping[str, Any]) -> StateDict:
    """A state dict as it is stored: each tensor with memory of its own, floats as float32."""
    return changed(
        state,
        lambda value: (value.float() if value.is_floating_point() else value).clone(
            memory_format=torch.contiguous_format
        ),
    )


def _with_metadata(state: OrderedDict[str, Tensor], metadata: Mapping[str, Any] | None) -> StateDict:
    if metadata is not None:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]  # as torch itself keeps it
    return state
