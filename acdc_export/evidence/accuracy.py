"""Accuracy of the sparse half and of its twin on the same samples, each in the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import batches, stats
from .engine import Arrays, Engine
from .measurement import Measurement

RECORDED = ("accuracy", "acc", "top1", "top_1", "acc1", "acc_1", "val_accuracy", "val_acc", "test_accuracy", "test_acc")
"""What training loops call the accuracy of samples that they don't train on; parts of one up to 1, else percent."""

FAR = 10.0
"""Points between the accuracy that was recorded and the measured one from which on it is said."""


@dataclass(frozen=True)
class ClassCount:
    """The samples of a class, and how many of them the sparse half and its twin get right."""

    label: int
    samples: int
    sparse: int
    dense: int


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of both halves in percent, and the paired drop from the twin to the sparse half in points."""

    samples: int
    sparse: Measurement
    dense: Measurement
    drop: Measurement
    agreement: float  # percent of samples to which both halves give the same class, right or wrong
    only_sparse: int  # samples that only the sparse half gets right
    only_dense: int
    classes: tuple[ClassCount, ...]
    output: str = ""  # the name of the output that was judged


def measure(
    sparse: Engine,
    dense: Engine,
    data: Iterable[tuple[Arrays, NDArray[Any]]],
    *,
    output: str,
    batch_size: int,
    alpha: float = stats.ALPHA,
) -> Accuracy:
    """Judge both halves on a stream of `(inputs by name, labels)`. The intervals are at 1 - `alpha`.

    Args:
        data: batches; inputs have shape `(rows, ...)`, labels are int64 class numbers of shape `(rows,)`.
        output: the name of the logits, shape `(rows, classes)`.
        batch_size: of both engines; the last batch is padded.

    Raises:
        UsageError: no samples, labels of a single class, or of classes that this network doesn't have.
    """
    label_batches, sparse_batches, dense_batches = [], [], []
    for inputs, batch_labels in data:
        sparse_logits = batches.run(sparse, inputs, batch_size)[output]
        dense_logits = batches.run(dense, inputs, batch_size)[output]
        if sparse_logits.ndim != 2:
            raise UsageError(
                f"The output '{output}' has shape {sparse_logits.shape}; accuracy is judged on logits (rows, classes).",
                "Name the output that holds one logit for each class with --judged-output.",
            )
        _check_labels(batch_labels, classes=sparse_logits.shape[1])
        label_batches.append(batch_labels)
        sparse_batches.append(_classes(sparse_logits))
        dense_batches.append(_classes(dense_logits))
    if not label_batches:
        raise UsageError("The data to be judged by holds no samples.", "Give others with --data.")
    labels = np.concatenate(label_batches)
    if len(labels) > 1 and (labels == labels[0]).all():
        raise UsageError(
            f"All {len(labels)} samples to be judged by are of class {labels[0]}: a network that always gives this "
            "class would get all of them right.",
            "Judge by samples of all classes; check that the labels were read from the right place.",
        )
    counted = _count(labels, np.concatenate(sparse_batches), np.concatenate(dense_batches), alpha)
    return replace(counted, output=output)


def doubts(accuracy: Accuracy, recorded: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say where an accuracy is so far from what training recorded, or so near chance, that the data may be to blame.

    Args:
        accuracy: of both halves.
        recorded: what both are called in the notes, and the metrics of their training, in percent or parts of one;
            those that are called as in `RECORDED` count.
    """
    notes = []
    sides = dict(zip(recorded, (accuracy.sparse, accuracy.dense), strict=True))
    for name, measured in sides.items():
        value = _recorded(recorded[name])
        if value is not None and abs(measured.value - value) > FAR and not measured.low <= value <= measured.high:
            notes.append(
                f"The {name} gets {measured.value:.1f} % right, far from the {value:.1f} % that its training recorded: "
                "it may be overfitted, or the samples prepared or numbered otherwise than for training."
            )
    if len(accuracy.classes) > 1:
        most = max(accuracy.classes, key=lambda counts: counts.samples)
        share = 100 * most.samples / accuracy.samples
        near = [f"the {name} ({side.value:.1f} %)" for name, side in sides.items() if side.low <= share]
        if near:
            notes.append(
                f"Near chance: {' and '.join(near)} can't be told from always answering class {most.label}, which is "
                f"right for {share:.1f} %."
            )
    return notes


def _recorded(metrics: Mapping[str, float]) -> float | None:
    """The top-1 accuracy in percent that training recorded; None where nothing is called so."""
    for name, value in metrics.items():
        if name.lower().replace("-", "_").split("/")[-1] in RECORDED and 0 <= value <= 100:
            return 100 * value if value <= 1 else value
    return None


def _classes(logits: NDArray[Any]) -> NDArray[Any]:
    """The class of every row, shape `(rows,)`; -1, which is never right, for a row with NaN or infinity."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def _check_labels(labels: NDArray[Any], classes: int) -> None:
    """Raises `UsageError` for labels that are none of the network's classes."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UsageError(
            f"Labels run from {labels.min()} to {labels.max()}, but the network knows classes 0 to {classes - 1}.",
            "Check that --data belongs to this pair, and that its classes are numbered from 0.",
        )


def _count(labels: NDArray[Any], sparse: NDArray[Any], dense: NDArray[Any], alpha: float) -> Accuracy:
    """Compare the classes that both halves give, all of shape `(samples,)`, with the labels."""
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
