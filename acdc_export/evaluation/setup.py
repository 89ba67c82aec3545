"""What is evaluated: a pair in one deployment, and how it is measured and judged there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..config import Target
from ..data import Data
from ..evidence import batches
from ..evidence.engine import Engine
from ..evidence.gates import Gate
from ..lowering import Deployment, LoweredModel, QuantizationInputs, lower
from ..machine import Machine
from ..pair import Half, Pair
from ..progress import Progress
from . import micro_batches


@dataclass(frozen=True)
class Int8:
    """What quantized deployments of a pair need: both halves calibrated, and a runtime that runs them in FP32."""

    halves: Mapping[Half, QuantizationInputs]
    fp32: Deployment


@dataclass(frozen=True)
class Evaluation:
    """A pair in one deployment. `folder` is the bundle being built."""

    pair: Pair
    deployment: Deployment
    controls: tuple[Deployment, ...]  # that run here
    asked_controls: tuple[str, ...]  # all that the target asks for, by `Deployment.name`
    machine: Machine
    batch_sizes: tuple[int, ...]
    gated: int  # the batch size that gates judge, with all cores
    judged: str  # the output that accuracy is judged by
    folder: Path
    scratch: Path
    progress: Progress
    gates: tuple[Gate, ...]
    samples: Data | None = None  # that accuracy is judged on
    int8: Int8 | None = None  # of a quantized deployment
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
        return (deployment or self.deployment).open(model, batch_size, self.machine.cpus[:threads], wait=wait)

    def inputs(self, batch_size: int) -> dict[str, NDArray[Any]]:
        """One batch of real inputs."""
        reference = self.pair.reference.inputs
        return {name: batches.pad(array[:batch_size], batch_size) for name, array in reference.items()}

    def lower(self, half: Half, stem: Path, deployment: Deployment | None = None) -> dict[int, LoweredModel]:
        """Lower a half for each batch size, for this deployment or for a control.

        Raises:
            GraphError: it can't be lowered for the target.
            EngineError: the runtime can't build it, or be opened to find the fastest micro-batches.
        """
        where = deployment or self.deployment
        return lower(
            self.pair.onnx(half),
            stem,
            where,
            (self.gated, *(size for size in self.batch_sizes if size != self.gated)),
            scratch=self.scratch,
            cpus=self.machine.cpus,
            inputs=self.int8.halves[half] if self.int8 and where.settings.quantized else None,
            # Rows that depend on each other stay together.
            choose=None if self.pair.record.batch_size else partial(self._fastest, half, where),
        )

    def _fastest(self, half: Half, deployment: Deployment, batch_size: int, models: Mapping[int, Path]) -> int:
        """The micro-batch in which a batch runs fastest, of the models for each."""
        self.progress.say(
            f"Finding the micro-batches in which {deployment.name} runs batches of {batch_size} fastest ({half})."
        )
        variants = {size: partial(self.open, model, batch_size, deployment) for size, model in models.items()}
        return micro_batches.fastest(variants, self.inputs(batch_size), batch_size)
