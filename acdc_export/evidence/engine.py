"""What evidence needs from a runtime: a loaded model that runs, is timed and can be paused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Turn:
    """Several runs in a row, and the processor time that the process got meanwhile."""

    nanoseconds: NDArray[np.int64]  # of each run, (runs,)
    processor: int  # nanoseconds of processor time for all of them, all threads together
    preempted: int  # times that a thread had to leave its core to another process (involuntary context switches)


@dataclass(frozen=True)
class LayerTime:
    """What one operator of a model took in a run, as the runtime itself tells."""

    name: str  # the runtime's own
    operator: str
    seconds: float  # mean over the runs


class Engine(Protocol):
    """One model, loaded for one batch size, in one process of its own.

    Every call may raise `errors.EngineError`: the runtime answered with an error, died or hung.
    """

    def ready(self) -> None:
        """Wait until the model is loaded. Every other call but `close` does so by itself."""

    def info(self) -> dict[str, Any]:
        """Return what the runtime says of itself; JSON values only.

        `runtime` and `version` are always there. Where the runtime tells, so are `instruction_set` and
        `supported_ops`, the fraction (0 to 1) of operators on its fast path.
        """

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return the outputs of one batch by name. Inputs are by name, in the model's own shapes and dtypes."""

    def time(self, inputs: Arrays, repeats: int) -> Turn:
        """Run `repeats` times, and measure inside the process."""

    def profile(self, inputs: Arrays, repeats: int) -> tuple[LayerTime, ...] | None:
        """What each operator took over `repeats` runs, in order of execution; None where the runtime doesn't tell."""

    def peak_memory(self) -> int:
        """Return the most resident memory that the process ever held, in bytes."""

    def timer(self) -> float:
        """Return the nanoseconds between two readings of the clock that `time` uses, inside the process."""

    def cpu_seconds(self) -> float:
        """Return the seconds of processor time that the process has used so far, all its threads together."""

    def pause(self) -> None:
        """Stop the process at once, spinning threads included."""

    def resume(self) -> None:
        """Let a paused process continue."""

    def close(self) -> None:
        """End the process, whatever state it is in. Safe to call twice."""
