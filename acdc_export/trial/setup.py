"""What is tried: a pair, where it is put, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..data import Data
from ..engines import Seat
from ..evidence import batches
from ..evidence.engine import Engine
from ..machine import Machine
from ..pair import Pair
from ..progress import Progress


@dataclass(frozen=True)
class Integers:
    """What int8 needs: samples of the training split, and a runtime for floats, in which a network is calibrated and
    its integers are computed exactly. `keep` names the weights of layers that stay in float."""

    samples: Data
    floats: Seat
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What is tried: a pair, where it is put, and how it is measured. `folder` is the bundle being built."""

    pair: Pair
    seat: Seat
    controls: tuple[Seat, ...]
    machine: Machine
    precision: str
    batch_sizes: tuple[int, ...]
    gated: int  # the batch size that gates judge
    folder: Path
    scratch: Path
    progress: Progress
    integers: Integers | None = None  # with int8

    def open(self, model: Path, batch_size: int, seat: Seat | None = None, *, wait: bool = False) -> Engine:
        """Load a model file in the target's runtime, or in that of another seat; see `Engine.ready` for `wait`."""
        return (seat or self.seat).open(model, batch_size=batch_size, cpus=self.machine.cpus, wait=wait)

    def inputs(self, batch_size: int) -> dict[str, NDArray[Any]]:
        """One batch of real inputs."""
        reference = self.pair.reference.inputs
        return {name: batches.pad(array[:batch_size], batch_size) for name, array in reference.items()}
