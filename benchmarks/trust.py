"""How far can a verdict be trusted? The same bundle against itself, and against slowdowns of a known size.

    python -m benchmarks.trust --minutes 60                  go on with the trials, for about an hour
    python -m benchmarks.trust --minutes 60 --neighbour      the same beside a process that loads one core in bursts
    python -m benchmarks.trust --minutes 60 --batch-size 512    on a faster machine, so that a run takes 5 to 10 ms
    python -m benchmarks.trust                               the tables of the trials so far

The gates in use elsewhere are computed from the same trials, for which pytest-benchmark must be installed.

Every trial is a check as a user runs it, and adds a line to trust.jsonl. So the trials can be interrupted, and go on at
another time. The class of the machine tells trials of different machines apart, as in a baseline. All kinds of trials
take turns, so that they see the same hours. Bounds are exact (Clopper and Pearson 1934), one-sided, each at 95 %.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from acdc_export import machine, workflow
from acdc_export.bundle import Bundle
from acdc_export.checking.steps import machine_class

from . import pairs
from .seeded import slowed

TRIALS = Path(__file__).parent / "trust.jsonl"
BUNDLES = Path(__file__).parent / "results" / "trust"
BATCH = 128  # the sparse half takes 5 to 10 ms on a processor with AVX2
KINDS = {"self": (200, 20.0), "slow5": (100, 60.0), "slow3": (100, 60.0)}  # number of trials, budget of each in seconds
BESIDE = {**KINDS, "long": (100, 60.0)}  # beside a neighbour also self-tests of the budget that it takes there
SPREAD = 10  # how many checks of the bundle's own ratio, without a neighbour
SPREAD_EVERY = 190.0  # seconds between two of them: ten take half an hour
SPREAD_BUDGET = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to go on with trials")
    parser.add_argument("--neighbour", action="store_true", help="beside a process that loads one core in bursts")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="samples in a run of the model")
    arguments = parser.parse_args()
    if arguments.minutes:
        go_on(60 * arguments.minutes, arguments.neighbour, arguments.batch_size)
    trials = read()
    for where in dict.fromkeys(trial["machine"] for trial in trials):
        for neighbour in (False, True):
            print_tables([trial for trial in trials if (trial["machine"], trial["neighbour"]) == (where, neighbour)])


def go_on(seconds: float, neighbour: bool, batch_size: int) -> None:
    """Add trials until the time is over or all trials are made."""
    bundle = the_bundle(batch_size)
    here: str | None = None  # the class of this machine: its engine tells it with the first trial, a self-test
    end, spread_at = time.monotonic() + seconds, 0.0
    with tempfile.TemporaryDirectory() as folder:
        slow = {f"slow{percent}": slowed(Path(folder) / f"slow{percent}", percent) for percent in (3, 5)}
        while time.monotonic() < end:
            kinds_so_far = [
                trial["kind"] for trial in read() if (trial["machine"], trial["neighbour"]) == (here, neighbour)
            ]
            kinds = BESIDE if neighbour else KINDS
            shares = {kind: kinds_so_far.count(kind) / number for kind, (number, _) in kinds.items()}
            kind = min(shares, key=lambda name: shares[name])
            spread_is_due = here and not neighbour and kinds_so_far.count("spread") < SPREAD
            if spread_is_due and time.monotonic() - spread_at > SPREAD_EVERY:
                kind, spread_at = "spread", time.monotonic()
            elif shares[kind] >= 1:
                break
            with noise() if neighbour else nothing():
                line = trial(bundle, kind, slow, Path(folder))
            here = line["machine"]
            with TRIALS.open("a") as file:
                file.write(json.dumps({"kind": kind, "neighbour": neighbour, **line}) + "\n")
            ratio = f"{line['value']:.4f} [{line['low']:.4f}, {line['high']:.4f}]" if line["value"] else "-"
            print(f"{kind:7} {line['verdict']:12} {ratio}  {line['seconds']:5.1f} s", flush=True)


def the_bundle(batch_size: int) -> Bundle:
    """Return the bundle of the pipeline `digits` at a batch size, exported once and then reused."""
    path = BUNDLES / str(batch_size) / "digits-cpu"
    if not (path / "manifest.json").is_file():
        pair = pairs.digits()
        pipeline = workflow.pair_pipeline(pair)
        assert pipeline is not None
        judging = replace(pipeline.judging, batch_sizes=(batch_size,), gated_batch_size=batch_size)
        workflow.export(pair, "cpu", judging=judging, out=path.parent)
    return Bundle.load(path)


def trial(bundle: Bundle, kind: str, slow: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run one check. Returns the line that is kept of it."""
    how: dict[str, Any] = {"self_test": True}
    if kind in slow:
        how = {"against": bundle.path, "target": slow[kind], "against_target": "cpu", "twins": False}
    elif kind == "spread":
        how = {"save": folder / "spread.json"}
    budget = BESIDE[kind][1] if kind in BESIDE else SPREAD_BUDGET
    check = workflow.check(bundle.path, **how, budget=budget, out=folder / "checks")
    with np.load(folder / "checks" / bundle.path.name / "samples.npz") as archive:
        raw = {name: archive[name] for name in archive.files}
    if check.latency.failure:
        raise SystemExit(f"A trial was not measured: {check.latency.failure}")
    measured = check.measured["speedup" if kind == "spread" else "latency.p50.ratio"]
    means = {
        variant: float(np.concatenate([times for name, times in raw.items() if name.startswith(f"{variant}.")]).mean())
        / 1e6
        for variant in check.latency.variants
    }
    steady = check.latency.steadiness
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": str(machine_class(check.machine, check.new)),
        "batch size": check.batch_size,
        "verdict": check.verdict,
        "value": measured.value if measured else None,
        "low": measured.low if measured else None,
        "high": measured.high if measured else None,
        "seconds": check.latency.seconds,
        "launches": check.latency.launches,
        "looks": check.latency.looks,
        "p50": {name: round(variant.p50, 4) for name, variant in check.latency.variants.items()},
        "mean": {name: round(mean, 4) for name, mean in means.items()},
        "drift": round(steady.drift, 3),
        "steal": steady.steal and round(steady.steal, 4),
        "others": steady.others and round(steady.others, 3),
        "disturbed": round(steady.contention.disturbed, 3),
    }


@contextmanager
def noise() -> Iterator[None]:
    """Run a process on one core that works and rests in turns, a third of a second each on average."""
    process = multiprocessing.get_context("spawn").Process(target=_bursts, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def _bursts() -> None:
    os.sched_setaffinity(0, {machine.physical_cpus()[-1]})
    draw, parent = random.Random(), os.getppid()
    while os.getppid() == parent:  # ends with its parent, even one that was killed
        until = time.perf_counter() + draw.expovariate(3)
        while time.perf_counter() < until:
            pass
        time.sleep(draw.expovariate(3))


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TRIALS.read_text().splitlines()] if TRIALS.exists() else []


def print_tables(trials: list[dict[str, Any]]) -> None:
    if not trials:
        return
    print(f"\n{trials[0]['machine']}, {'with' if trials[0]['neighbour'] else 'without'} a noisy neighbour")
    kinds = {kind: [trial for trial in trials if trial["kind"] == kind] for kind in (*BESIDE, "spread")}
    for kind in ("self", "long"):
        if not (chosen := kinds[kind]):
            continue
        verdicts = [trial["verdict"] for trial in chosen]
        covered = sum(trial["low"] <= 1 <= trial["high"] for trial in chosen)
        halves = [(trial["high"] - trial["low"]) / 2 for trial in chosen]
        print(f"  self-tests, {len(chosen)} of up to {BESIDE[kind][1]:g} s")
        row("pass", verdicts.count("pass"), len(chosen), "at least")
        row("fail", verdicts.count("fail"), len(chosen), "at most")
        row("interval holds 1.0", covered, len(chosen), "at least")
        print(f"    median half-width {100 * float(np.median(halves)):.2f} %")
        print(f"    median launches {np.median([trial['launches'] for trial in chosen]):g}")
    for kind, percent in (("slow5", 5), ("slow3", 3)):
        if chosen := kinds[kind]:
            verdicts = [trial["verdict"] for trial in chosen]
            print(f"  seeded slowdown of {percent} %, {len(chosen)} of up to {KINDS[kind][1]:g} s")
            row("found", verdicts.count("fail"), len(chosen), "at least")
            row("inconclusive", verdicts.count("inconclusive"), len(chosen), "at most")
            seconds = [trial["seconds"] for trial in chosen]
            print(f"    median {np.median(seconds):.0f} s of measuring")
            if ratios := [trial["value"] for trial in chosen if trial["value"]]:
                print(f"    the ratio from check to check: median absolute deviation {deviation(ratios):.2f} %")
    usual(kinds)
    if len(chosen := kinds["spread"]) >= 10:
        speedups = [trial["value"] for trial in chosen]
        p50 = np.array([trial["p50"]["sparse"] for trial in chosen])
        windows = [speedups[at : at + 10] for at in range(len(chosen) - 9)]
        spreads = [deviation(window) for window in windows]
        print(f"  the bundle's own speed-up, {len(chosen)} checks, any ten in a row (half an hour):")
        print(f"    median absolute deviation {np.median(spreads):.2f} %, at most {max(spreads):.2f} %")
        print(f"    milliseconds meanwhile from {p50.min():.2f} to {p50.max():.2f}")


def usual(kinds: dict[str, list[dict[str, Any]]]) -> None:
    """Print what gates on stored milliseconds would have said of the same trials.

    The stored value is the old model's in a self-test: each self-test in turn.
    """
    stored = [(trial["p50"]["old"], trial["mean"]["old"]) for trial in kinds["self"]]
    if not stored:
        return
    try:
        from pytest_benchmark.utils import PercentageRegressionCheck
    except ImportError:
        print("  the usual gates on the same trials: not here without pytest-benchmark (pip install pytest-benchmark)")
        return

    def p50(trial: dict[str, Any], percent: int) -> float:
        new = trial["p50"]["new"]
        return float(np.mean([new > (1 + percent / 100) * old for old, _ in stored]))

    def compare_fail(trial: dict[str, Any], percent: int) -> float:
        check, new = PercentageRegressionCheck("mean", percent), {"mean": trial["mean"]["new"]}
        return float(np.mean([bool(check.fails(new, {"mean": old})) for _, old in stored]))

    print("  the usual gates on the same trials, whichever of them was stored: share that they call slower")
    print(f"    {'':34}{'no change':>12}{'3 %':>8}{'5 %':>8}")
    for percent in (5, 10):
        for name, calls in (
            (f"p50 against a stored p50, {percent} %", p50),
            (f"pytest-benchmark, mean:{percent}%", compare_fail),
        ):
            shares = [
                f"{100 * np.mean([calls(trial, percent) for trial in kinds[kind]]):.0f} %" if kinds[kind] else ""
                for kind in ("self", "slow3", "slow5")
            ]
            print(f"    {name:34}{shares[0]:>12}{shares[1]:>8}{shares[2]:>8}")


def deviation(ratios: ArrayLike) -> float:
    """Return the median absolute deviation, in percent of the median."""
    logs = np.log(ratios)
    return 100 * float(np.median(np.abs(logs - np.median(logs))))


def row(what: str, count: int, of: int, side: str) -> None:
    """Print a share and its exact one-sided bound at 95 %."""
    from scipy.stats import binomtest

    alternative = "greater" if side == "at least" else "less"
    interval = binomtest(count, of, alternative=alternative).proportion_ci(0.95, method="exact")
    bound = interval.low if side == "at least" else interval.high
    print(f"    {what:20}{count:4} of {of}: {100 * count / of:5.1f} %, {side} {100 * bound:.1f} % at 95 % confidence")


if __name__ == "__main__":
    main()
