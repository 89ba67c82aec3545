"""Training data for the pipelines' loop: batches in an order that torch's random numbers draw, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Data
from ..data.images import Batches, steps_of
from ..errors import UsageError

_ROWS = 1024  # read at a time

Batch = tuple[list[Tensor], Tensor]
"""The network's inputs, each (N, ...), and the labels, int64 (N,)."""


class BatchLoader(Protocol):
    """Gives batches without end.

    The state dict is the place in the epoch, as far as torch's random numbers don't tell.
    """

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""

    @property
    def left_out(self) -> int:
        """The number of samples that an epoch leaves out, since they fill no batch."""

    @property
    def classes(self) -> int:
        """The number of classes; labels are smaller than this."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels; empty where they are not known."""

    @property
    def listed(self) -> bool:
        """Whether a label is a place in a listing of classes, such as the folders of images."""

    @property
    def resumable(self) -> bool:
        """Whether it can go on from the middle of an epoch."""

    def examples(self, count: int) -> dict[str, Tensor]:
        """Return at most `count` rows of inputs by name, as the network takes them, without augmentation."""

    def next(self) -> Batch:
        """Return the next batch; a new epoch begins where the last one ended."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class InMemory:
    """Keeps all samples in memory. Images may be shifted by up to `shift` pixels; their border is repeated.

    An epoch has as many batches as `images.steps_of` says. Raises `UsageError` where `shift` is set and the inputs are
    no images, or the data can't be read.
    """

    resumable = True

    def __init__(self, source: Data, batch_size: int, shift: int, drop_last: bool = True) -> None:
        self.inputs, self.labels = _tensors(source)
        self.names, self.listed = source.classes or (), source.listed and source.classes is not None
        for name, tensor in self.inputs.items():
            if shift and (tensor.ndim != 4 or not tensor.is_floating_point()):
                raise UsageError(
                    f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; only images "
                    "(N, C, H, W) of floats can be shifted.",
                    "Set shift = 0 under [training].",
                )
        self._size, self._shift = min(batch_size, len(self.labels)), shift
        self.steps = steps_of(len(self.labels), self._size, drop_last)
        self.left_out = max(0, len(self.labels) - self.steps * self._size)
        self._order, self._at = torch.empty(0, dtype=torch.int64), 0

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def examples(self, count: int) -> dict[str, Tensor]:
        return {name: tensor[:count] for name, tensor in self.inputs.items()}

    def next(self) -> Batch:
        if self._at in (0, self.steps):
            self._order, self._at = torch.randperm(len(self.labels)), 0
        rows = self._order[self._at * self._size : (self._at + 1) * self._size]
        self._at += 1
        return [shifted(tensor[rows], self._shift) for tensor in self.inputs.values()], self.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._at = state["order"], state["at"]


class Streamed:
    """Reads and augments images as they are needed, an epoch at a time."""

    resumable = False

    def __init__(self, epochs: Batches) -> None:
        self._epochs, self.steps, self.classes, self.left_out = epochs, epochs.steps, epochs.classes, epochs.left_out
        self.names, self.listed = epochs.names, epochs.listed
        self._examples = next(iter(epochs))[0]
        self._remaining: Iterator[tuple[Tensor, Tensor]] = iter(())

    def examples(self, count: int) -> dict[str, Tensor]:
        return {"input": self._examples[:count]}

    def next(self) -> Batch:
        batch = next(self._remaining, None)
        if batch is None:
            self._remaining = iter(self._epochs)
            batch = next(self._remaining)
        return [batch[0]], batch[1]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._remaining = iter(())


def shifted(images: Tensor, most: int) -> Tensor:
    """Move each image by up to `most` pixels along each axis, its border repeated; (N, C, H, W) in and out."""
    if not most:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * most + 1, (2, count, 1))
    rows, columns = moves[0] + torch.arange(height), moves[1] + torch.arange(width)  # (N, H), (N, W)
    sample = torch.arange(count)
    moved = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _tensors(source: Data) -> tuple[dict[str, Tensor], Tensor]:
    """Read all of the data: its inputs by name (a single one is called "input"), and its labels."""
    batches = list(source.batches(_ROWS))
    inputs_by_name = [x if isinstance(x, dict) else {"input": x} for x, _ in batches]
    inputs = {name: torch.from_numpy(np.concatenate([x[name] for x in inputs_by_name])) for name in inputs_by_name[0]}
    return inputs, torch.from_numpy(np.concatenate([y for _, y in batches]))
