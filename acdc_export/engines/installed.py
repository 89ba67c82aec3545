"""A target that can run here: its definition and its interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import HOST, Target
from ..evidence.engine import Arrays
from . import building
from .building import Built
from .environment import Environment
from .worker import Worker, open_engine


@dataclass(frozen=True)
class InstalledTarget:
    """A target that can run here: its definition and its interpreter."""

    target: Target
    environment: Environment

    def open(
        self,
        model: Path,
        *,
        batch_size: int,
        cpus: Sequence[int],
        precision: str = "fp32",
        wait: bool = True,
    ) -> Worker:
        """Load a model with a thread on each of `cpus`; as `open_engine`, which tells what it raises."""
        return open_engine(
            self.target,
            self.environment,
            model,
            batch_size=batch_size,
            threads=len(cpus),
            cpus=cpus,
            precision=precision,
            wait=wait,
        )

    def check_build(self, precision: str) -> None:
        """Ensure that what a precision takes to build is on this machine, before there is anything to build.

        An interpreter of its own has all that it needs; only in the host's something may be missing, such as a
        compiler. Raises as `building.check`.
        """
        if self.target.runtime.python == HOST and self.target.precisions[precision].build:
            building.check(self.target, self.environment, precision)

    def build(
        self,
        model: Path,
        stem: Path,
        *,
        precision: str,
        batch_sizes: Sequence[int],
        cpus: Sequence[int],
        inputs: Arrays,
    ) -> Built:
        """Have the runtime make its own form of a model; as `building.build`, which tells what it raises."""
        return building.build(
            self.target,
            self.environment,
            model,
            stem,
            precision=precision,
            batch_sizes=batch_sizes,
            cpus=cpus,
            inputs=inputs,
        )
