"""What is tried: a pair, where it is put, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import lowering
from ..config import Target
from ..data import Data
from ..engines import InstalledTarget
from ..evidence import batches
from ..evidence.engine import Engine
from ..evidence.gates import Gate
from ..lowering import quantize
from ..machine import Machine, saturates
from ..pair import Half, Pair
from ..progress import Progress


@dataclass(frozen=True)
class Deployment:
    """A target that can run here, at one of its precisions."""

    installed: InstalledTarget
    precision: str

    @property
    def target(self) -> Target:
        """Its definition."""
        return self.installed.target

    @property
    def name(self) -> str:
        """Of the target, and of the precision where that is none that goes without saying: `cpu`, `cpu-int8`."""
        return self.target.at(self.precision)

    @property
    def tolerance(self) -> float:
        """Of its outputs."""
        return self.target.parity[self.precision]

    @property
    def scheme(self) -> str | None:
        """In int8, how it is quantized: `Graph.int8`."""
        return self.target.graph.int8 if self.precision == "int8" else None


@dataclass(frozen=True)
class Integers:
    """What int8 needs: samples of the training split, and a runtime for floats, in which a network is calibrated and
    its integers are computed exactly."""

    samples: Mapping[str, NDArray[Any]]  # by input, (samples, ...)
    floats: Deployment
    halves: Mapping[Half, lowering.Calibrated]  # what our own calibration found; empty where only runtimes quantize
    keep: tuple[str, ...] = ()  # the weights of layers that stay in float

    def quantization(self, half: Half, scheme: str) -> lowering.Quantization:
        """How a half is quantized by one of our own schemes."""
        vnni = not saturates()
        bits = 7 if scheme == "convinteger" and not vnni else 8  # the other scheme is for GPUs
        calibrated = self.halves[half]
        keep = (*self.keep, *quantize.faster_in_fp32(calibrated, scheme, self.keep, vnni=vnni))
        return lowering.Quantization(calibrated, scheme, keep, weight_bits=bits)


@dataclass(frozen=True)
class Evaluation:
    """What is tried: a pair, where it is put, and how it is measured and judged. `folder` is the bundle being built."""

    pair: Pair
    deployment: Deployment
    controls: tuple[Deployment, ...]  # that run here
    asked_controls: tuple[str, ...]  # all that the target asks for, by `Deployment.name`
    machine: Machine
    batch_sizes: tuple[int, ...]
    gated: int  # the batch size that gates judge, with all cores
    folder: Path
    scratch: Path
    progress: Progress
    gates: tuple[Gate, ...]
    samples: Data | None = None  # that accuracy is judged on
    integers: Integers | None = None  # with int8
    threads: tuple[int, ...] = field(default=())  # measured beside as many as there are cores

    @property
    def target(self) -> Target:
        """The definition of the target."""
        return self.deployment.target

    def open(
        self,
        model: Path,
        batch_size: int,
        deployment: Deployment | None = None,
        *,
        threads: int | None = None,
        wait: bool = False,
    ) -> Engine:
        """Load a model file in the target's runtime, or in another; see `Engine.ready` for `wait`."""
        where = deployment or self.deployment
        cpus = self.machine.cpus[:threads]
        return where.installed.open(model, batch_size=batch_size, cpus=cpus, precision=where.precision, wait=wait)

    def inputs(self, batch_size: int) -> dict[str, NDArray[Any]]:
        """One batch of real inputs."""
        reference = self.pair.reference.inputs
        return {name: batches.pad(array[:batch_size], batch_size) for name, array in reference.items()}
