"""A target whose engine is slower by a known share, which a check has to detect.

    python -m benchmarks.seeded FOLDER 5        a copy of the target `cpu` in FOLDER/cpu, 5 % slower

The slowdown is seeded inside the function that is timed: after each run it spins for that share of the run's time. So
the true ratio is known, whatever the machine does meanwhile. For runs of about a millisecond it is known only roughly,
since the threads of an engine may fall asleep while it spins.
"""

from __future__ import annotations

import sys
from pathlib import Path

from acdc_export import resources

_SLOWED = """

# Seeded: every run takes {percent:g} % longer.
import time as _time

_load = load


def load(model, batch_size, threads, precision):
    return _Slowed(_load(model, batch_size, threads, precision))


class _Slowed:
    def __init__(self, model):
        self._model = model
        self.info, self.run = model.info, model.run

    def bind(self, inputs):
        once, clock = self._model.bind(inputs), _time.perf_counter

        def slowed():
            start = clock()
            once()
            now = clock()
            until = now + {share!r} * (now - start)
            while clock() < until:
                pass

        return slowed
"""


def slowed(folder: Path, percent: float, name: str = "cpu") -> str:
    """Copy a built-in target into `folder`/`name`, with an engine that is `percent` % slower. Returns its path."""
    to = folder / name
    if not to.exists():
        folder.mkdir(parents=True, exist_ok=True)
        resources.copy("targets", name, to)
        engine = to / "engine.py"
        engine.write_text(engine.read_text() + _SLOWED.format(percent=percent, share=percent / 100))
    return str(to)


if __name__ == "__main__":
    print(slowed(Path(sys.argv[1]), float(sys.argv[2])))
