"""Accuracy of the sparse half and of its twin on the same samples, each in the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import batches, stats
from .engine import Arrays, Engine
from .gates import Measurement


@dataclass(frozen=True)
class ClassCount:
    """Samples of one class, and how many of them each half gets right."""

    label: int
    samples: int
    sparse: int
    dense: int


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in percent, and the drop from twin to sparse half in points, paired."""

    samples: int
    sparse: Measurement
    dense: Measurement
    drop: Measurement
    agreement: float  # percent of samples on which both halves say the same, right or wrong
    only_sparse: int  # samples that only the sparse half gets right
    only_dense: int
    classes: tuple[ClassCount, ...]


def measure(
    sparse: Engine,
    dense: Engine,
    data: Iterable[tuple[Arrays, NDArray[Any]]],
    *,
    output: str,
    batch_size: int,
    alpha: float = stats.ALPHA,
) -> Accuracy:
    """Judge both halves on a stream of `(inputs by name, labels)`; labels are int64 class numbers, shape
    `(rows,)`. The intervals are at 1 - `alpha`.

    Raises:
        UsageError: no samples, labels of a single class, or of classes that this network doesn't have.
    """
    labels, said_sparse, said_dense = [], [], []
    for inputs, wanted in data:
        one, two = (batches.run(engine, inputs, batch_size)[output] for engine in (sparse, dense))
        if one.ndim != 2:
            raise UsageError(
                f"The output '{output}' has shape {one.shape}; accuracy is judged on logits (rows, classes).",
                "Let the network's first output be one logit for each class.",
            )
        _check_labels(wanted, classes=one.shape[1])
        labels.append(wanted)
        said_sparse.append(_classes(one))
        said_dense.append(_classes(two))
    if not labels:
        raise UsageError("The data to be judged by holds no samples.", "Give others with --data.")
    wanted = np.concatenate(labels)
    if len(wanted) > 1 and (wanted == wanted[0]).all():
        raise UsageError(
            f"All {len(wanted)} samples to be judged by are of class {wanted[0]}: a network that says nothing else "
            "would get all of them right.",
            "Judge by samples of all classes; check that the labels were read from the right place.",
        )
    return _count(wanted, np.concatenate(said_sparse), np.concatenate(said_dense), alpha)


def _classes(logits: NDArray[Any]) -> NDArray[Any]:
    """The class of each row; -1, which is never right, where the row holds NaN or infinity."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def _check_labels(labels: NDArray[Any], classes: int) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UsageError(
            f"Labels run from {labels.min()} to {labels.max()}, but the network knows classes 0 to {classes - 1}.",
            "Check that --data belongs to this pair, and that its classes are numbered from 0.",
        )


def _count(labels: NDArray[Any], sparse: NDArray[Any], dense: NDArray[Any], alpha: float) -> Accuracy:
    sparse_right, dense_right = sparse == labels, dense == labels
    only_sparse = int((sparse_right & ~dense_right).sum())
    only_dense = int((dense_right & ~sparse_right).sum())
    classes = []
    for label in np.unique(labels):
        of_class = labels == label
        classes.append(
            ClassCount(
                int(label),
                int(of_class.sum()),
                int(sparse_right[of_class].sum()),
                int(dense_right[of_class].sum()),
            )
        )
    return Accuracy(
        samples=len(labels),
        sparse=stats.proportion(int(sparse_right.sum()), len(labels), alpha),
        dense=stats.proportion(int(dense_right.sum()), len(labels), alpha),
        drop=stats.paired_drop(only_sparse, only_dense, len(labels), alpha),
        agreement=100 * float((sparse == dense).mean()),
        only_sparse=only_sparse,
        only_dense=only_dense,
        classes=tuple(classes),
    )
