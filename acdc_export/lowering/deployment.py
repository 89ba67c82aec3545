"""Where a graph goes: a target that can run here, at one of its precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Precision, Quantizer, Target
from ..engines import InstalledTarget, Worker
from ..machine import saturates


@dataclass(frozen=True)
class Deployment:
    """A target that can run here, at one of its precisions."""

    installed: InstalledTarget
    precision: str  # its name

    @property
    def target(self) -> Target:
        """The target's definition."""
        return self.installed.target

    @property
    def name(self) -> str:
        """The target's name, and the precision's where it is not the target's default: `cpu`, `cpu-int8`."""
        return self.target.at(self.precision)

    @property
    def settings(self) -> Precision:
        """What target.toml says of the precision."""
        return self.target.precisions[self.precision]

    @property
    def quantizer(self) -> Quantizer:
        """How our own scheme quantizes for this processor."""
        without = self.settings.quantizer_without_vnni
        return without if without is not None and saturates() else self.settings.quantizer

    def open(self, model: Path, batch_size: int, cpus: Sequence[int], *, wait: bool = True) -> Worker:
        """Load a model file in the runtime, with a thread on each of `cpus`; see `open_engine` for what it raises."""
        return self.installed.open(model, batch_size=batch_size, cpus=cpus, precision=self.precision, wait=wait)
