"""The state of a run, in memory and in a file: all that the next step depends on.

The file has torch's own format and is read with `weights_only=True`, so that nothing in it is executed. It is written
beside its place and renamed, so that a run that is killed while it writes leaves the file before.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import CheckpointError, OutputError, UsageError
from ..files import output_errors, renamed

SCHEMA_VERSION = 2
_FORMAT = "acdc-export training checkpoint"
_ANEW = "Remove the file to begin the run anew, or give another one."
_UNKEPT = "The state of this run can't be kept in a checkpoint"
_KEEP_PLAIN = "Keep numbers, texts, tensors, lists and dicts in the state of the LR scheduler and of what is in `also`."
State = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The objects that hold the state of a run, beside its place in the schedule.

    `also` holds all others that have a state: a GradScaler, a sampler, a torch.Generator.
    """

    model: nn.Module
    optimizer: Optimizer
    lr_scheduler: Any
    also: Sequence[Any]

    def __post_init__(self) -> None:
        for part in self.also:
            if not (isinstance(part, torch.Generator) or hasattr(part, "state_dict")):
                raise UsageError(
                    f"{type(part).__name__} has no state that could be kept.",
                    "Give objects with state_dict() and load_state_dict(), or torch.Generators.",
                )

    def state(self) -> State:
        """Return the state at this moment; its tensors are those in use, not copies."""
        return {
            "model": self.model.state_dict(),
            "buffers": dict(self.model.named_buffers()),  # among them those that are not in the state dict
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler else None,
            "also": [
                part.get_state() if isinstance(part, torch.Generator) else part.state_dict() for part in self.also
            ],
            "random": _random(),
        }

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take all objects back to `state`."""
        self.model.load_state_dict(state["model"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])
        self.model.zero_grad(set_to_none=True)  # gradients gathered since belong to another moment
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        for part, kept in zip(self.also, state["also"], strict=True):
            if isinstance(part, torch.Generator):
                part.set_state(kept)
            else:
                part.load_state_dict(kept)
        _set_random(state["random"])


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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.", "Check its permissions.") from error
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise CheckpointError(
            f"{path} can't be read as a checkpoint: it is cut off, or something else.", _ANEW
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a run of AC/DC.", _ANEW)
    if state["schema_version"] == 1:  # said `revived` in its phases
        return {**state, "phases": [renamed(phase, revived="regrown") for phase in state["phases"]]}
    if state["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {state['schema_version']}; this release reads 1 and {SCHEMA_VERSION}.", _ANEW
        )
    return state


def require_same(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, whose identity `stored` is not `expected`. Raises `CheckpointError`."""
    for what, value in expected.items():
        if stored.get(what) != value:
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
    """Replace numpy's numbers and arrays by Python's and torch's, which can be read without running code."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
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
