"""An engine without a runtime: for what evidence makes of an engine's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from acdc_export.evidence.engine import Arrays


class Fake:
    """Answers `function(x)` as "logits"; takes `cost` (a function of the run's number) nanoseconds for each run."""

    def __init__(
        self, function: Callable[[np.ndarray], np.ndarray] = lambda x: x, cost: Callable[[], float] = lambda: 1e6
    ) -> None:
        self.function, self.cost = function, cost
        self.batches: list[int] = []
        self.log: list[str] = []
        self.closed = False

    def ready(self) -> None:
        self.log.append("ready")

    def info(self) -> dict[str, Any]:
        return {"runtime": "fake", "version": "1"}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.batches.append(len(inputs["x"]))
        return {"logits": self.function(inputs["x"])}

    def time(self, inputs: Arrays, repeats: int) -> np.ndarray:
        return np.array([self.cost() for _ in range(repeats)], dtype=np.int64)

    def peak_memory(self) -> int:
        return 1_000_000

    def pause(self) -> None:
        self.log.append("pause")

    def resume(self) -> None:
        self.log.append("resume")

    def close(self) -> None:
        self.closed = True
