"""The state of a run, in memory and in a file: all that the next step depends on.

The file has torch's own format and is read with `weights_only=True`, so that nothing in it is executed. It is written
beside its place and renamed, so that a run that is killed while it writes leaves the file before.
"""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import CheckpointError, OutputError, UsageError
from ..files import output_errors, renamed
from .state import loaded, versioned

SCHEMA_VERSION = 3
_FORMAT = "acdc-export training checkpoint"
_ANEW = "Remove the file to begin the run anew, or give another one."
_UNKEPT = "The state of this run can't be kept in a checkpoint"
_KEEP_PLAIN = "Keep numbers, texts, tensors, lists and dicts in the state of the LR scheduler and of what is in `also`."
State = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The objects that hold the state of a run, beside its place in the schedule.

    `also` holds all others that have a state: a GradScaler, a sampler, a torch.Generator, a running average.
    """

    model: nn.Module
    optimizer: Optimizer
    lr_scheduler: Any
    also: Sequence[Any]
    _outside: list[Tensor] = field(default_factory=list, init=False)  # of the optimizer, but not of the model

    def __post_init__(self) -> None:
        for part in self.also:
            if not (isinstance(part, torch.Generator) or hasattr(part, "state_dict")):
                raise UsageError(
                    f"{type(part).__name__} has no state that could be kept.",
                    "Give objects with state_dict() and load_state_dict(), or torch.Generators.",
                )
        self._names()

    def state(self) -> State:
        """Return the state at this moment; its tensors are those in use, not copies."""
        names = self._names()
        return {
            "model": self.model.state_dict(),
            "tensors": _tensors(self.model),
            "requires_grad": {name: parameter.requires_grad for name, parameter in self._parameters().items()},
            "optimizer": self.optimizer.state_dict(),
            "groups": [[names[id(held)] for held in group["params"]] for group in self.optimizer.param_groups],
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler else None,
            "also": [
                part.get_state() if isinstance(part, torch.Generator) else part.state_dict() for part in self.also
            ],
            "also_tensors": [_tensors(part) if isinstance(part, nn.Module) else {} for part in self.also],
            "random": _random(),
        }

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take all objects back to `state`.

        Raises:
            CheckpointError: the optimizer held parameters that aren't there, or the LR scheduler is for fewer groups.
        """
        _restore_module(self.model, state["model"], state["tensors"])
        for name, parameter in self._parameters().items():
            if name in state["requires_grad"]:
                parameter.requires_grad_(state["requires_grad"][name])
        self.model.zero_grad(set_to_none=True)  # gradients gathered since belong to another moment
        if state["groups"] is not None:
            self._restore_groups(state["groups"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler:
            _fit_lambdas(self.lr_scheduler, state["lr_scheduler"])
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        for part, kept, tensors in zip(self.also, state["also"], state["also_tensors"], strict=True):
            if isinstance(part, torch.Generator):
                part.set_state(kept)
            elif isinstance(part, nn.Module):
                _restore_module(part, kept, tensors)
            else:
                part.load_state_dict(kept)
        _set_random(state["random"])

    def _restore_groups(self, groups: Sequence[Sequence[str]]) -> None:
        """Give each of the optimizer's groups the parameters that it held.

        Groups come and go while a network is unfrozen. Their options are a part of the optimizer's own state.
        """
        parameters, current = self._parameters(), self.optimizer.param_groups
        missing = [name for names in groups for name in names if name not in parameters]
        if missing:
            raise CheckpointError(
                f"The optimizer held {missing[0]}, which is not there now.",
                "Make all parameters, and give the optimizer those that are not the model's, before the loop begins.",
            )
        self.optimizer.param_groups[:] = [
            {**(current[index] if index < len(current) else {}), "params": [parameters[name] for name in names]}
            for index, names in enumerate(groups)
        ]

    def _names(self) -> dict[int, str]:
        """What each parameter of the model and the optimizer is called, by its id."""
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        known = {id(parameter) for parameter in (*self.model.parameters(), *self._outside)}
        self._outside.extend(parameter for parameter in held if id(parameter) not in known)
        return {id(parameter): name for name, parameter in self._parameters().items()}

    def _parameters(self) -> dict[str, Tensor]:
        """All parameters by name. Those outside of the model are numbered, in the order that the optimizer got them."""
        outside = {f"parameter {index} outside of the model": held for index, held in enumerate(self._outside)}
        return {**outside, **dict(self.model.named_parameters())}


def check_state_dict(model: nn.Module) -> None:
    """Refuse a model whose state dict holds other parameters than the model. Raises `UsageError`.

    Both halves are kept as state dicts: what these leave out or change would be lost.
    """
    state = model.state_dict()
    for name, parameter in model.named_parameters():
        value = state.get(name)
        if not (isinstance(value, Tensor) and value.shape == parameter.shape and value.dtype == parameter.dtype):
            raise UsageError(
                f"The model's state dict doesn't hold {name} as the model does: a hook or a state_dict of its own "
                "leaves it out, renames or converts it.",
                "Attach ACDC without that hook (register_state_dict_post_hook), and use it when you save by yourself.",
            )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, among them those that are not in its state dict."""
    return {**{name: value.detach() for name, value in module.named_parameters()}, **dict(module.named_buffers())}


def _restore_module(module: nn.Module, state: Any, tensors: Mapping[str, Tensor]) -> None:
    """Load a module's state, and then set its tensors to exactly those that it had."""
    if not isinstance(state, dict):
        module.load_state_dict(state)
        return
    if not hasattr(state, "_metadata"):  # of a release before 3, from the modules here
        state = versioned(OrderedDict(state), module.state_dict())
    loaded(module, state, tensors)


def _fit_lambdas(lr_scheduler: Any, state: State) -> None:
    """Give a LambdaLR as many functions as it had: those of groups that were added since are the last.

    Its state holds everything but the functions. Raises `CheckpointError` where it has fewer.
    """
    if isinstance(inner := getattr(lr_scheduler, "scheduler", None), LRScheduler):  # Accelerate's wrapper
        lr_scheduler = inner
    for inner, kept in zip(getattr(lr_scheduler, "_schedulers", ()), state.get("_schedulers", ()), strict=False):
        _fit_lambdas(inner, kept)
    functions, wanted = getattr(lr_scheduler, "lr_lambdas", None), state.get("lr_lambdas")
    if isinstance(functions, list) and isinstance(wanted, list):
        if len(functions) < len(wanted):
            raise CheckpointError(
                f"{type(lr_scheduler).__name__} has {len(functions)} functions, and had {len(wanted)} when the "
                "checkpoint was written: one for each of the optimizer's groups.",
                "Before the loop goes on, append the functions of the groups that were added: "
                "lr_scheduler.lr_lambdas.append(...).",
            )
        del functions[len(wanted) :]


def write(path: Path, state: State) -> None:
    """Write a run's state to `path`, in one step.

    Raises:
        OutputError: the file can't be written; the one before stays.
        UsageError: the state holds objects that can be read only by running code.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with output_errors(path, "for the checkpoint"), temporary.open("wb") as file:
            try:
                torch.save({"format": _FORMAT, "schema_version": SCHEMA_VERSION, **_plain(state)}, file)
            except RuntimeError as error:  # torch's own writer, on a disk that is full
                raise OutputError(
                    f"Can't write {path}: {str(error).splitlines()[0]}",
                    "Free some space, or choose another place for the checkpoint; the one before is untouched.",
                ) from error
            except (AttributeError, TypeError, pickle.PicklingError) as error:
                raise UsageError(f"{_UNKEPT}: {str(error).splitlines()[0].rstrip('.')}.", _KEEP_PLAIN) from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def read(path: Path) -> State:
    """Read a run's state from `path`; its tensors are on the CPU.

    Raises:
        CheckpointError: the file can't be read, is something else, or has another schema version.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.", "Check its permissions.") from error
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise CheckpointError(
            f"{path} can't be read as a checkpoint: it is cut off, or something else.", _ANEW
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a run of AC/DC.", _ANEW)
    written = state["schema_version"]
    if written not in (*_UPGRADES, SCHEMA_VERSION):
        raise CheckpointError(f"{path} has schema version {written}; this release reads 1 to {SCHEMA_VERSION}.", _ANEW)
    for version in range(written, SCHEMA_VERSION):
        state = _UPGRADES[version](state)
    return state


def _from_1(state: State) -> State:
    """Version 2 from version 1, which said `revived` in its phases."""
    return {**state, "phases": [renamed(phase, revived="regrown") for phase in state["phases"]]}


def _from_2(state: State) -> State:
    """Version 3 from version 2, which knew neither the versions of modules nor the groups of the optimizer."""

    def upgraded(parts: State | None) -> State | None:
        if parts is None:
            return None
        tensors = {"tensors": parts["buffers"], "also_tensors": [{} for _ in parts["also"]]}
        return {**parts, **tensors, "groups": None, "requires_grad": {}}

    pruned = [*state["phases"][0]["nonzeros"]] if state["phases"] else None
    return {
        **state,
        "identity": {**state["identity"], "choice of weights": pruned},
        "twin": upgraded(state["twin"]),
        "parts": upgraded(state["parts"]),
    }


_UPGRADES = {1: _from_1, 2: _from_2}


def require_same(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, whose identity `stored` is not `expected`; None is what isn't known.

    Raises `CheckpointError`.
    """
    for what, value in expected.items():
        if stored.get(what) not in (None, value):
            raise CheckpointError(
                f"{path} is of a run with another {what}{_difference(stored.get(what), value)}.", _ANEW
            )


def _difference(stored: Any, expected: Any) -> str:
    """Name the first key in which two tables differ, or both values where they are short enough to be read."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        key = next(key for key in (*stored, *expected) if stored.get(key) != expected.get(key))
        return f" ({key}: {stored.get(key, 'none')} there, {expected.get(key, 'none')} here)"
    texts = f" ({stored} there, {expected} here)"
    return texts if len(texts) < 160 else ""


def require_plain(path: Path) -> None:
    """Refuse a file just written that can't be read without running code, and remove it. Raises `UsageError`."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        path.unlink()
        lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        raise UsageError(f"{_UNKEPT}: {lines[0] if lines else type(error).__name__}.", _KEEP_PLAIN) from error


def _plain(value: Any) -> Any:
    """Replace numpy's numbers and arrays by Python's and torch's, which can be read without running code.

    A state dict stays one: its `_metadata` has the versions of the modules, by which weights are converted on loading.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value)
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        if type(value) not in (OrderedDict, Counter):  # those that can be read without running code
            return items
        plain: State = type(value)(items)
        vars(plain).update(_plain(vars(value)))
        return plain
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _random() -> State:
    """Return the random state of torch, Python and numpy's old interface: loops draw from all three."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    numbers = np.random.get_state(legacy=False)
    assert isinstance(numbers, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if in_use else [],
        "python": random.getstate(),
        "numpy": _plain(numbers),
    }


def _set_random(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    numbers = state["numpy"]
    key = numbers["state"]["key"]
    key = key.numpy().astype(np.uint32) if isinstance(key, Tensor) else key
    np.random.set_state({**numbers, "state": {**numbers["state"], "key": key}})
