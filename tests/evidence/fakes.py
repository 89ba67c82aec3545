"""An engine without a runtime, with a clock of its own, to test what evidence makes of an engine's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from acdc_export.evidence.engine import Arrays, Turn


class Clock:
    """Its seconds pass only when an engine spends them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """Answers `function(x)` as "logits"; a run takes `cost` nanoseconds of `clock`, opening it `opening` seconds."""

    def __init__(
        self,
        function: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        cost: float | Callable[[], float] = 1e6,
        *,
        clock: Clock | None = None,
        opening: float = 0.0,
        memory: int = 1_000_000,
    ) -> None:
        self.function, self.cost, self.memory = function, cost, memory
        self.clock = clock or Clock()
        self.clock.now += opening
        self.batches: list[int] = []
        self.busy = 0.0
        self.closed = False

    def ready(self) -> None:
        pass

    def info(self) -> dict[str, Any]:
        return {"runtime": "fake", "version": "1"}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.batches.append(len(inputs["x"]))
        return {"logits": self.function(inputs["x"])}

    def time(self, inputs: Arrays, repeats: int) -> Turn:
        """It is alone on its core, and has the processor for all of the time."""
        times = self.times(repeats)
        return Turn(times, int(times.sum()), 0)

    def times(self, repeats: int) -> np.ndarray:
        return np.array([self._once() for _ in range(repeats)], dtype=np.int64)

    def _once(self) -> float:
        cost = self.cost() if callable(self.cost) else self.cost
        self.clock.now += cost / 1e9
        self.busy += cost / 1e9
        return cost

    def peak_memory(self) -> int:
        return self.memory

    def timer(self) -> float:
        return 30.0

    def cpu_seconds(self) -> float:
        return self.busy

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
