"""Which kernel and which tiling is fastest here, by measuring them within the whole network.

Two libraries are built, one with all products sparse and one with all dense. In each, all products try all their
tilings, run by run; what each step takes is noted. So every candidate is measured with the caches as its neighbours
leave them. Instruction sets that this processor lacks get the same kernel, and a tiling by rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .emit import emit
from .layers import Product
from .layout import Layout, Step
from .library import Library
from .plan import (
    DENSE,
    INSTRUCTION_SETS,
    LARGEST_TILE,
    OUTPUTS,
    SPARSE,
    Choice,
    Plan,
    Tiling,
    guess,
    is_integer,
    is_product,
    kernels,
    tiling,
    vectors,
    width,
)
from .toolchain import build

_REPEATS = 3  # runs of each candidate in the first round, the least of which counts
_AGAIN = 8  # runs of each of the best, and of their neighbours, in the second
_BEST = 3

Times = dict[tuple[int, Tiling], float]  # seconds, by kernel and tiling


def tuned(layout: Layout, instruction_sets: Iterable[str], threads: int, folder: Path) -> Plan:
    """Return the plan that is fastest on this machine with so many threads; `folder` is for temporary files."""
    sets = tuple(instruction_sets)
    here = _here(layout, folder)
    if here not in sets:
        return guess(layout, sets, threads)
    times: dict[int, Times] = {at: {} for at, step in enumerate(layout.steps) if is_product(step)}
    for dense in (False, True):
        start = guess(layout, [here], threads, dense)
        if dense and all(start.choices[at].kernel == kernels(layout.steps[at])[0] for at in times):
            continue
        with _library(layout, start, folder, f"tuning_{int(dense)}", threads) as library:
            _measure(library, layout, start, here, threads, times)
    choices = {}
    for at, measured in times.items():
        kernel, fastest = min(measured, key=lambda candidate: measured[candidate])
        others = {name: tiling(layout.steps[at], kernel, name, threads) for name in sets}
        choices[at] = Choice(kernel, {**others, here: fastest})
    return Plan(sets, choices, here, threads)


def _here(layout: Layout, folder: Path) -> str:
    """The best instruction set of this processor: what an empty library says."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    needs = {
        "avx512_vnni": {"avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
        "avx512": {"avx512bw", "avx512vl", "avx512dq"},
        "avx2_vnni": {"avx2", "fma", "avx_vnni"},
        "avx2": {"avx2", "fma"},
    }
    return next((name for name in INSTRUCTION_SETS if needs[name] <= flags), "")


def _library(layout: Layout, plan: Plan, folder: Path, stem: str, threads: int) -> Library:
    return Library(build(emit(layout, plan, stem, stem, ""), folder, plan.instruction_sets), threads)


def _measure(library: Library, layout: Layout, plan: Plan, here: str, threads: int, times: dict[int, Times]) -> None:
    random = np.random.default_rng(0)
    inputs = {port.name: random.standard_normal((1, *port.shape), np.float32) for port in library.inputs}
    tried = {at: list(_candidates(layout.steps[at], plan.choices[at].kernel, here, threads)) for at in times}

    def measure(lists: dict[int, list[Tiling]], repeats: int) -> None:
        for turn in range(max(map(len, lists.values()), default=0)):
            current = {at: tilings[turn % len(tilings)] for at, tilings in lists.items()}
            for at, chosen in current.items():
                library.set_tiling(at, plan.choices[at].kernel, chosen.tile, chosen.pixel_pieces, chosen.channel_pieces)
            profile = library.profile(inputs, repeats)
            for at, chosen in current.items():
                key = plan.choices[at].kernel, chosen
                times[at][key] = min(times[at].get(key, np.inf), profile[at].seconds)

    measure(tried, _REPEATS)
    better = {}
    for at, tilings in tried.items():
        best = sorted(tilings, key=lambda chosen: times[at][plan.choices[at].kernel, chosen])[:_BEST]
        limits = _limits(layout.steps[at], plan.choices[at].kernel, here)
        better[at] = list(dict.fromkeys(finer for chosen in best for finer in _neighbours(chosen, limits, threads)))
    measure(better, _AGAIN)


def _limits(step: Step, kernel: int, here: str) -> tuple[int, int]:
    """The most pieces along pixels and channels."""
    layer = step.layer
    assert isinstance(layer, Product)
    along = vectors(step, here) if kernel in (SPARSE, DENSE) else 1
    return along, -(-len(layer.weights) // OUTPUTS[kernel])


def _candidates(step: Step, kernel: int, here: str, threads: int) -> Iterator[Tiling]:
    """Tilings that may be the fastest: of each size, cut along pixels, along channels, or both."""
    most_along, most_across = _limits(step, kernel, here)
    pieces = 1 if threads == 1 else 4 * threads
    if kernel not in (SPARSE, DENSE):
        yield Tiling(1, 1, min(pieces, most_across))
        return
    seen = set()
    for tile in range(1, LARGEST_TILE[width(here)][is_integer(step), kernel] + 1):
        tiles = -(-most_along // tile)
        for along in {min(pieces, tiles), min(threads, tiles), 1}:
            chosen = Tiling(-(-most_along // tiles), along, min(-(-pieces // along), most_across))
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


def _neighbours(chosen: Tiling, limits: tuple[int, int], threads: int) -> Iterator[Tiling]:
    """A tiling, and the same with half and twice the pieces."""
    yield chosen
    if threads == 1:
        return
    for along, across in ((0.5, 1), (1, 0.5), (2, 1), (1, 2)):
        pieces = round(chosen.pixel_pieces * along), round(chosen.channel_pieces * across)
        if 1 <= pieces[0] <= limits[0] and 1 <= pieces[1] <= limits[1]:
            yield Tiling(chosen.tile, *pieces)
