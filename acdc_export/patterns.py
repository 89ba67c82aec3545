"""The kinds of sparsity: their names, their geometry, and a reference for which weights each of them drops.

A pattern divides a weight into groups of neighbours along its input channels. A group lies in one filter at one kernel
position. A kind says how large the groups are, and what may be left in one:

    unstructured  groups of one weight; the smallest magnitudes are zero
    blockN        groups of N, each of which is zero or untouched as a whole, by the sum of its magnitudes: block4
    N:M           groups of M, of which the N largest magnitudes are kept: 2:4

To add a kind that groups like these, give it a row in `FORMS`: configuration, training by that name, the audit of
graphs, `inspect` and what targets require all go by `parse`. A kind with another geometry also needs a field in
`PatternKind`, what follows from it in `allows`, `satisfies` and `reference_masks`, and a class in `training.pattern`.

The masks here are written to be read. Training has a fast selection of its own, which the tests hold against them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError, nearest

Scope = Literal["global", "uniform"]
"""What is ranked together: the weights of all layers, or those of each layer by itself."""

State = Literal["conformant", "violating", "ineligible"]


@dataclass(frozen=True)
class GroupCounts:
    """The groups of one weight. `state` is "ineligible" where its channels can't be divided into groups."""

    state: State
    conforming: int  # groups that are as the pattern asks
    zero: int  # groups that are zero throughout
    groups: int


@dataclass(frozen=True)
class PatternKind:
    """A kind of sparsity. Get one with `parse`."""

    name: str  # "unstructured", "block4", "2:4"
    size: int  # weights in a group, along the input channels
    kept: int | None = None  # how many are kept in each group; None where groups are kept or zero as a whole

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that the kind itself fixes, 0 to 1; None where the user chooses it."""
        return None if self.kept is None else 1 - self.kept / self.size

    def ineligible(self, channels: int) -> str | None:
        """Why a weight with so many input channels a filter can't have the pattern; None where it can."""
        return f"{channels} input channels a filter are no multiple of {self.size}" if channels % self.size else None

    def allows(self, nonzeros: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether groups with so many non-zeros are as the pattern asks."""
        conforming = (nonzeros == 0) | (nonzeros == self.size) if self.kept is None else nonzeros <= self.kept
        return np.asarray(conforming)

    def count_groups(self, weight: NDArray[Any], inner_axis: int = 1) -> GroupCounts:
        """Count the groups of a weight of any shape, whose input channels are the axis `inner_axis`."""
        if self.ineligible(weight.shape[inner_axis]):
            return GroupCounts("ineligible", 0, 0, 0)
        nonzeros = _group_sums(weight != 0, self.size, inner_axis, np.int64)
        conforming = int(np.count_nonzero(self.allows(nonzeros)))
        state: State = "conformant" if conforming == nonzeros.size else "violating"
        return GroupCounts(state, conforming, int(np.count_nonzero(nonzeros == 0)), nonzeros.size)


@dataclass(frozen=True)
class Form:
    """How a kind of sparsity is written: `shape` is a regular expression, and `make` takes the numbers in it."""

    shape: str
    example: str
    make: Callable[..., PatternKind]


def unstructured() -> PatternKind:
    """Single weights."""
    return PatternKind("unstructured", 1)


def blocks(size: int) -> PatternKind:
    """1xN blocks: `size` weights that are kept or zero together. Raises `UsageError` for less than two."""
    if size < 2:
        weights = "weight" if size == 1 else "weights"
        raise UsageError(
            f"There is no pattern 'block{size}': its blocks hold {size} {weights}.", "Give a size of 2 or more: block4."
        )
    return PatternKind(f"block{size}", size)


def n_of_m(n: int, m: int) -> PatternKind:
    """The `n` largest of every `m` weights are kept. Raises `UsageError` unless 0 < n < m."""
    if not 0 < n < m:
        raise UsageError(
            f"{n} of every {m} weights can't be kept: {n}:{m} is no pattern.", "Give 0 < n < m, such as 2:4."
        )
    return PatternKind(f"{n}:{m}", m, n)


FORMS = (
    Form("unstructured", "unstructured", unstructured),
    Form(r"block(\d+)", "block4", blocks),
    Form(r"(\d+):(\d+)", "2:4", n_of_m),
)
"""All kinds that there are."""

USUAL = (n_of_m(2, 4), blocks(4))
"""The kinds that runtimes are known to make use of, which are counted where nothing else is asked for."""


def parse(text: str) -> PatternKind:
    """The kind that `text` names: "unstructured", "block4", "2:4".

    Raises:
        UsageError: there is none of that name, or its numbers make none.
    """
    for form in FORMS:
        if match := re.fullmatch(form.shape, text):
            return form.make(*(int(number) for number in match.groups()))
    examples = [form.example for form in FORMS]
    raise UsageError(
        f"There is no pattern '{text}'{nearest(text, examples)}.",
        f"There are {', '.join(examples)}, in other sizes too.",
    )


def counted(names: Iterable[str], own: str = "") -> tuple[PatternKind, ...]:
    """The kinds to count groups of: those that are asked for by name, or else the usual ones.

    `own` is the kind of the pair that the weights come from. It is counted as well, and comes first. It may be one that
    is not known here, since a pattern can be a user's own. Raises `UsageError` for an unknown kind in `names`.
    """
    kinds = [parse(name) for name in names] or [*USUAL]
    known = _known(own)
    first = [known] if known and known.size > 1 else []  # zeros are counted in any case
    return tuple(dict.fromkeys([*first, *kinds]))


def satisfies(kind: str, required: str) -> bool:
    """Whether weights of the pattern `kind` also have the pattern `required`: those of "1:4" have "2:4".

    Raises:
        UsageError: `required` is no pattern. A `kind` that is not known satisfies "unstructured" alone.
    """
    wanted, given = parse(required), _known(kind)
    if wanted.size == 1:
        return True
    if given is None:
        return False
    if wanted.kept is not None:
        return given.kept is not None and _most(given.size, given.kept, wanted.size) <= wanted.kept
    return given.kept is None and given.size % wanted.size == 0


def zeros_of(sparsity: float, total: int) -> int:
    """How many of `total` are zero: at least this share, in decimal: 0.9 is nine tenths, not the nearest float."""
    return math.ceil(Fraction(repr(float(sparsity))) * total)


def reference_masks(
    kind: PatternKind, weights: Mapping[str, NDArray[Any]], sparsity: float | None = None, scope: Scope = "global"
) -> dict[str, NDArray[np.bool_]]:
    """Which weights are kept, shaped as `weights`, whose axes are (filters, input channels, ...): True is kept.

    ceil(`sparsity` * groups) of the groups are zero, those with the smallest sum of magnitudes (in float32, added in
    the order of the channels). N:M drops in every group, and takes no sparsity. Among equals those that come first are
    dropped first: by layer, then by flat index in C order.

    Raises:
        UsageError: a sparsity that is missing, too much, or not between 0 and 1; a weight whose input channels can't
            be divided into groups, or with values that are not finite.
    """
    if (sparsity is None) != (kind.kept is not None):
        problem = "needs a sparsity" if sparsity is None else "has a sparsity of its own"
        raise UsageError(f"The pattern {kind.name} {problem}.", "Give a sparsity to every pattern but N:M.")
    if sparsity is not None and not 0 < sparsity < 1:
        raise UsageError(f"Sparsity {sparsity} is not between 0 and 1.", "Give the share of zeros: 0.9 for 90 %.")
    magnitudes = {name: _magnitudes(kind, name, weight) for name, weight in weights.items()}
    if sparsity is None:
        return {name: _largest_of_groups(kind, array) for name, array in magnitudes.items()}
    together = [list(weights)] if scope == "global" else [[name] for name in weights]
    masks: dict[str, NDArray[np.bool_]] = {}
    for names in together:
        masks |= _largest_groups(kind, {name: magnitudes[name] for name in names}, sparsity)
    return masks


def _known(name: str) -> PatternKind | None:
    try:
        return parse(name)
    except UsageError:
        return None


def _most(size: int, kept: int, window: int) -> int:
    """The most non-zeros in any aligned window, where `kept` of every `size` are kept."""
    most = 0
    for start in range(0, math.lcm(size, window), window):
        overlaps = [
            min(start + window, group + size) - max(start, group)
            for group in range(start - start % size, start + window, size)
        ]
        most = max(most, sum(min(kept, overlap) for overlap in overlaps))
    return most


def _magnitudes(kind: PatternKind, name: str, weight: NDArray[Any]) -> NDArray[np.float32]:
    magnitudes: NDArray[np.float32] = np.abs(weight).astype(np.float32)
    problem = kind.ineligible(weight.shape[1]) if kind.size > 1 else None
    if not np.isfinite(magnitudes).all():
        problem = "values that are NaN or infinite"
    if problem:
        raise UsageError(f"{name} can't have the pattern {kind.name}: {problem}.", "Leave that layer dense.")
    return magnitudes


def _largest_of_groups(kind: PatternKind, magnitudes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask that keeps the largest `kind.kept` of each group."""
    groups = _divided(magnitudes, kind.size, axis=1)
    order = groups.argsort(axis=2, kind="stable")
    mask = np.ones(groups.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :, : kind.size - (kind.kept or 0)], False, axis=2)
    return mask.reshape(magnitudes.shape)


def _largest_groups(
    kind: PatternKind, magnitudes: Mapping[str, NDArray[np.float32]], sparsity: float
) -> dict[str, NDArray[np.bool_]]:
    """The masks that drop the groups with the smallest sums, of all layers that are given."""
    sums = {
        name: _group_sums(array, kind.size, axis=1) if kind.size > 1 else array for name, array in magnitudes.items()
    }
    ranked = np.concatenate([array.ravel() for array in sums.values()])
    kept = np.ones(ranked.size, dtype=bool)
    kept[np.argsort(ranked, kind="stable")[: zeros_of(sparsity, ranked.size)]] = False
    ends = np.cumsum([array.size for array in sums.values()])[:-1]
    masks = {}
    for (name, array), part in zip(sums.items(), np.split(kept, ends), strict=True):
        mask = part.reshape(array.shape)
        masks[name] = mask.repeat(kind.size, axis=1) if kind.size > 1 else mask
    return masks


def _divided(array: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    """(..., I, ...) as (..., I / size, size, ...)."""
    return array.reshape(*array.shape[:axis], array.shape[axis] // size, size, *array.shape[axis + 1 :])


def _group_sums(array: NDArray[Any], size: int, axis: int, kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """The sum of each group, added in the order of the channels: a float sum in another order ranks otherwise."""
    groups = np.moveaxis(_divided(array, size, axis), axis + 1, 0)
    total = np.zeros(groups.shape[1:], dtype=kind)
    for channel in groups:  # the groups are small, and numpy is slow along short axes
        total += channel
    return total
