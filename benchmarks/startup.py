"""How long does the command take to answer, beyond Python's own start? Whole processes, in alternation."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter
from typing import Any

import numpy as np

ROUNDS = 21
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer, rich.console'": ["-c", "import typer, rich.console"],
    "acdc-export --help": ["-m", "acdc_export", "--help"],
    "acdc-export targets list": ["-m", "acdc_export", "targets", "list"],
    "acdc-export --target misspelt": ["-m", "acdc_export", "--target", "misspelt"],
}


def main() -> dict[str, Any]:
    """Measure the seconds of each command, and its difference to `python -c pass` in the same round.

    Seconds are medians; the difference has quartiles too.
    """
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, arguments in COMMANDS.items():
            start = perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            taken[name].append(perf_counter() - start)
    base = np.array(taken["python -c pass"][1:])  # the first round fills the page cache
    rows = {}
    print(f"{'seconds, median of ' + str(ROUNDS):<42}{'whole':>8}{'beyond':>9}   quartiles")
    for name, times in taken.items():
        beyond = np.array(times[1:]) - base
        low, middle, high = (float(value) for value in np.percentile(beyond, (25, 50, 75)))
        whole = float(np.median(times[1:]))
        rows[name] = {"seconds": whole, "beyond": middle, "quartiles": [low, high]}
        print(f"{name:<42}{whole:8.3f}{middle:9.3f}   {low:.3f} .. {high:.3f}")
    return {"rounds": ROUNDS, "commands": rows}
