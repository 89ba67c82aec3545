"""Stage 4: which kernel computes each product, and how it is cut into tiles and pieces.

A plan is data: it is stored beside the library, and with it the same library can be built again. `guess` makes one
without measuring; `tune.py` measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GraphError
from .layers import Product
from .layout import Layout, Step

INSTRUCTION_SETS = ("avx512_vnni", "avx512", "avx2_vnni", "avx2")
"""Best first, in the order of `SETS` in C."""

SPARSE, DENSE, SINGLE, LANES = range(4)
"""Kernels, as in C: pixels as lanes, sparse or dense; outputs of a single pixel, sparse or dense."""

LARGEST_TILE = {  # vectors of pixels, by width of vectors: FP32 sparse, dense; uint8 sparse, dense
    16: {(False, SPARSE): 8, (False, DENSE): 3, (True, SPARSE): 7, (True, DENSE): 3},
    8: {(False, SPARSE): 4, (False, DENSE): 3, (True, SPARSE): 3, (True, DENSE): 3},
}
OUTPUTS = {SPARSE: 4, DENSE: 8, SINGLE: 4, LANES: 16}
"""Outputs that a kernel computes together; pieces are cut between those."""

_SCHEMA = 2
_MOST_PIECES = 4096
_WITHOUT = "Compile without a plan."
_DENSE_FROM = {False: 0.5, True: 0.35}  # density, uint8 or not, from which dense kernels are likely faster


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: vectors of pixels in a tile, and pieces along pixels and channels, for threads."""

    tile: int = 1
    pixel_pieces: int = 1
    channel_pieces: int = 1


@dataclass(frozen=True)
class Choice:
    """The kernel of one product, and its tiling by instruction set."""

    kernel: int
    tilings: dict[str, Tiling]


@dataclass(frozen=True)
class Plan:
    """Choices by position of the step. `measured_on` is the instruction set that was measured, if any was."""

    instruction_sets: tuple[str, ...]
    choices: dict[int, Choice] = field(default_factory=dict)
    measured_on: str | None = None
    threads: int = 1

    def save(self, path: Path, layout: Layout, extra: Mapping[str, Any]) -> None:
        content = {"schema": _SCHEMA, "network": _signature(layout), **asdict(self), **extra}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _signature(layout: Layout) -> str:
    """What a plan depends on: the steps and their shapes, not the values of weights."""
    steps = [
        (
            step.kind,
            *(
                [*storage.tensor.shape, *storage.view]
                for storage in (*step.reads, *([step.writes] if step.writes else []))
            ),
        )
        for step in layout.steps
    ]
    return hashlib.sha256(json.dumps(steps).encode()).hexdigest()


def load(path: Path, layout: Layout) -> Plan:
    """Read a stored plan, and check that it is one of this network.

    Raises:
        GraphError: it isn't.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA:
            raise GraphError(f"{path} has schema {content['schema']}.", _WITHOUT)
        if content["network"] != _signature(layout):
            raise GraphError(f"{path} is a plan of another network.", _WITHOUT)
        choices = {
            int(at): Choice(choice["kernel"], {name: Tiling(**tiling) for name, tiling in choice["tilings"].items()})
            for at, choice in content["choices"].items()
        }
        plan = Plan(tuple(content["instruction_sets"]), choices, content["measured_on"], content["threads"])
        fits = _fits(plan, layout)
    except OSError as error:
        raise GraphError(f"{path} can't be read: {error.strerror or error}.", _WITHOUT) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GraphError(f"{path} is not a plan: {type(error).__name__} {error}.", _WITHOUT) from error
    if not fits:
        raise GraphError(f"{path} has choices that can't be.", _WITHOUT)
    return plan


def _fits(plan: Plan, layout: Layout) -> bool:
    """Whether a plan can be followed: generated code does so without looking again."""
    sets = plan.instruction_sets
    products = {at: step for at, step in enumerate(layout.steps) if is_product(step)}
    return (
        sets == tuple(name for name in INSTRUCTION_SETS if name in sets) != ()
        and plan.measured_on in (None, *sets)
        and _within(plan.threads, 1024)
        and set(plan.choices) == set(products)
        and all(_suits(choice, products[at], name) for at, choice in plan.choices.items() for name in sets)
    )


def _suits(choice: Choice, step: Step, instruction_set: str) -> bool:
    tiling = choice.tilings[instruction_set]
    if type(choice.kernel) is not int or choice.kernel not in kernels(step):
        return False
    largest = 1
    if choice.kernel in (SPARSE, DENSE):
        largest = LARGEST_TILE[width(instruction_set)][is_integer(step), choice.kernel]
    pieces = tiling.pixel_pieces, tiling.channel_pieces
    return _within(tiling.tile, largest) and all(_within(count, _MOST_PIECES) for count in pieces)


def _within(number: object, most: int) -> bool:
    return type(number) is int and 1 <= number <= most


def is_product(step: Step) -> bool:
    return isinstance(step.layer, Product)


def is_integer(step: Step) -> bool:
    return step.kind == "PRODUCT_U8"


def width(instruction_set: str) -> int:
    """Words in a vector."""
    return 16 if instruction_set.startswith("avx512") else 8


def density(step: Step) -> float:
    """Words of weights that are not zero: single weights in FP32, four along input channels in uint8."""
    layer = step.layer
    assert isinstance(layer, Product)
    weights = layer.weights
    if not is_integer(step):
        return float(np.count_nonzero(weights)) / max(weights.size, 1)
    outputs, inputs, *kernel = weights.shape
    padded = np.zeros((outputs, -(-inputs // 4) * 4, *kernel), bool)
    padded[:, :inputs] = weights != 0
    words = padded.reshape(outputs, -1, 4, *kernel).any(axis=2)
    return float(np.count_nonzero(words)) / max(words.size, 1)


def pixels(step: Step) -> int:
    """Pixels of the output."""
    assert step.writes is not None
    return int(np.prod(step.writes.tensor.shape[1:]))


def kernels(step: Step) -> tuple[int, ...]:
    """The kernels that can compute a product."""
    layer = step.layer
    assert isinstance(layer, Product)
    single = (SINGLE, LANES) if layer.groups == 1 else (SINGLE,)
    if pixels(step) == 1:
        return single
    return (SPARSE, DENSE) if layer.groups == 1 else (SPARSE,)


def vectors(step: Step, instruction_set: str) -> int:
    """Vectors of pixels that cover the output, in rows as far apart as those of the input."""
    assert step.writes is not None
    _, rows, columns = step.writes.tensor.shape
    return -(-((rows - 1) * step.reads[0].pitch + columns) // width(instruction_set))


def tiling(step: Step, kernel: int, instruction_set: str, threads: int, tile: int = 0) -> Tiling:
    """A tiling with about so many vectors in a tile, and a few pieces for each thread."""
    layer = step.layer
    assert isinstance(layer, Product)
    pieces = 1 if threads == 1 else 4 * threads
    groups = -(-len(layer.weights) // OUTPUTS[kernel])
    if kernel in (SINGLE, LANES):
        return Tiling(1, 1, min(pieces, groups))
    largest = LARGEST_TILE[width(instruction_set)][is_integer(step), kernel]
    count = vectors(step, instruction_set)
    tiles = -(-count // min(tile or largest, largest))
    size = -(-count // tiles)
    along = min(pieces, tiles)
    return Tiling(size, along, min(-(-pieces // along), groups))


def guess(layout: Layout, instruction_sets: Iterable[str], threads: int, dense: bool | None = None) -> Plan:
    """A plan without measurements. `dense` forces all products to be dense, or sparse, where there is a choice."""
    sets = tuple(instruction_sets)
    choices = {}
    for at, step in enumerate(layout.steps):
        if not is_product(step):
            continue
        able = kernels(step)
        full = density(step) >= _DENSE_FROM[is_integer(step)] if dense is None else dense
        kernel = able[-1] if full else able[0]
        choices[at] = Choice(kernel, {name: tiling(step, kernel, name, threads) for name in sets})
    return Plan(sets, choices, None, threads)
