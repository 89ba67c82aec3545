"""Stage 5: weights in the order in which kernels read them.

Sparse kernels read entries: a word of weights that is not zero, and the distance of its input in words. Dense ones read
every word, and share the distances. Where vpmaddubsw adds pairs of products in 16 bits, they may not fit: entries for
which that can happen stand last in each output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layers import Product
from .layout import Storage
from .plan import DENSE, LANES, SINGLE, SPARSE

_ENTRY = np.dtype([("offset", "<i4"), ("weight", "<i4")])
_SAFE = 128  # 255 * 128 is less than 2^15
_QUAD, _TOGETHER, _GROUP = 4, 8, 16  # outputs of a word of uint8, of dense kernels, and of a vector of outputs


@dataclass(frozen=True)
class Packed:
    """Arrays of one product, as kernels read them."""

    weights: NDArray[Any]
    offsets: NDArray[np.int32]  # of dense kernels: (taps,)
    starts: NDArray[np.uint32]  # of sparse kernels: (outputs rounded up to four + 1,)
    safe: NDArray[np.uint32]  # the end of those entries that fit into 16 bits, (outputs rounded up to four,)
    zeros: int
    total: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.weights.nbytes + self.offsets.nbytes + self.starts.nbytes + self.safe.nbytes


def pack(layer: Product, source: Storage, kernel: int) -> Packed:
    """Pack the weights of a product that reads `source`."""
    words = _words(layer)
    offsets = _offsets(layer, source, words.shape[1])
    zeros, total = int(np.count_nonzero(layer.weights == 0)), layer.weights.size
    empty = np.zeros(0, np.uint32)
    if kernel in (SPARSE, SINGLE):
        weights, starts, safe = _entries(layer, words, offsets)
        return Packed(weights, empty.astype(np.int32), starts, safe, zeros, total)
    outputs = len(words)
    size = _TOGETHER if kernel == DENSE else _GROUP
    matrix = np.zeros((-(-outputs // size) * size, words[0].size), np.int32)
    matrix[:outputs] = words.reshape(outputs, -1)
    assert kernel in (DENSE, LANES)
    weights = np.ascontiguousarray(matrix.reshape(-1, size, matrix.shape[1]).transpose(0, 2, 1))
    return Packed(weights, offsets[0].reshape(-1).astype(np.int32), empty, empty, zeros, total)


def _words(layer: Product) -> NDArray[np.int32]:
    """Weights as words: (outputs, words of a group's inputs, height, width).

    In uint8 a group's first input may stand within a word; its words are those that hold its inputs.
    """
    weights = layer.weights
    if weights.dtype == np.float32:
        return np.ascontiguousarray(weights).view(np.int32)
    outputs, inputs, height, width = weights.shape
    each = outputs // layer.groups
    count = max((inputs + first % 4 + 3) // 4 for first in range(0, min(layer.groups, 4) * inputs, inputs))
    bytes_ = np.zeros((outputs, count * 4, height, width), np.int8)
    for group in range(layer.groups):
        rows = slice(group * each, (group + 1) * each)
        shift = group * inputs % 4
        bytes_[rows, shift : shift + inputs] = weights[rows]
    ordered = np.ascontiguousarray(bytes_.reshape(outputs, count, 4, height, width).transpose(0, 1, 3, 4, 2))
    return ordered.view(np.int32)[..., 0]


def _offsets(layer: Product, source: Storage, words: int) -> NDArray[np.int64]:
    """Distances of inputs from the first pixel that an output at (0, 0) would read: (groups, words, height, width)."""
    height, width = layer.weights.shape[2:]
    inputs, lanes = layer.weights.shape[1], 4 if layer.weights.dtype == np.int8 else 1
    down, across = source.form.phases
    top, left = layer.window.pads[:2]
    rows, columns = (
        np.arange(size) * step - (0 if source.form.phases != (1, 1) else before)
        for size, step, before in zip((height, width), layer.window.dilations, (top, left), strict=True)
    )
    phase = (rows % down)[:, None] * across + columns % across
    first = np.arange(layer.groups) * inputs // lanes
    planes = (first[:, None] + np.arange(words))[:, :, None, None] * source.form.held + phase
    if source.form.shifts != (0,):  # a copy for each column of the window
        first = source.form.shifts[0]
        places = (np.arange(width) + first // layer.window.dilations[1]) * source.copy_distance
    else:
        places = columns // across
    offsets: NDArray[np.int64] = planes * source.plane + (rows // down)[:, None] * source.pitch + places
    return offsets


def _entries(
    layer: Product, words: NDArray[np.int32], offsets: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.uint32], NDArray[np.uint32]]:
    outputs = len(words)
    flat = words.reshape(outputs, -1)
    kept = flat != 0
    if layer.weights.dtype == np.float32:
        kept = flat.view(np.float32) != 0  # -0.0 is zero, too
    each = outputs // layer.groups
    places = offsets.reshape(layer.groups, -1)[np.arange(outputs) // each]
    row, column = np.nonzero(kept)
    entries = np.zeros(len(row), _ENTRY)
    entries["offset"], entries["weight"] = places[row, column], flat[row, column]
    wide = np.zeros(len(row), bool)
    if layer.weights.dtype == np.int8:
        parts = entries["weight"].copy().view(np.int8).reshape(-1, 2, 2).astype(np.int16)
        positive, negative = np.maximum(parts, 0).sum(2), np.minimum(parts, 0).sum(2)
        wide = ((positive > _SAFE) | (negative < -_SAFE)).any(1)
        order = np.lexsort((wide, row))
        entries, row, wide = entries[order], row[order], wide[order]
    rounded = -(-outputs // _QUAD) * _QUAD
    counts = np.bincount(row, minlength=rounded)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    narrow = np.bincount(row[~wide], minlength=rounded)
    return entries, starts, (starts[:-1] + narrow).astype(np.uint32)
