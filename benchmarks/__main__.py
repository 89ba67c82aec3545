"""Run the short benchmarks: all of them, or those that are named.

    python -m benchmarks                all, with a table each; JSON to benchmarks/results/NAME.json
    python -m benchmarks startup        this one

The others, such as `python -m benchmarks.trust`, run by themselves, since they take up to hours.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from acdc_export import machine

from . import cost, digits, startup, turns

BENCHMARKS = {"cost": cost.main, "startup": startup.main, "digits": digits.main, "turns": turns.main}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        print(f"\n{name}", flush=True)
        results = BENCHMARKS[name]()
        here = machine.describe()
        document = {
            "benchmark": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": here.processor,
            "cores": len(here.cpus),
            **results,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
