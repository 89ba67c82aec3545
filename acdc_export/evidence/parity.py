"""Parity: does the deployed graph in the engine give the reference outputs?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Arrays


@dataclass(frozen=True)
class Parity:
    """How near an engine's outputs come to the reference outputs.

    `required` is the smallest tolerance t for which |output - reference| <= t * (1 + |reference|) holds everywhere.
    It is infinite where an output or its reference is not finite, or the shapes differ.
    """

    samples: int
    required: float
    tolerance: float  # that is allowed
    max_abs: float  # the largest |output - reference|
    top1_agreement: float  # fraction of samples whose largest logit is the same

    @property
    def ok(self) -> bool:
        return self.required <= self.tolerance


def compare(outputs: Arrays, reference: Arrays, tolerance: float) -> Parity:
    """Compare outputs with the reference outputs. Both are by name, with the batch as first axis.

    Top-1 agreement is judged on the first output. Without any reference output, nothing agrees.
    """
    if not reference:
        return Parity(0, math.inf, tolerance, math.inf, 0.0)
    required = max_abs = 0.0
    for name, expected in reference.items():
        output = outputs.get(name)
        if output is None or output.shape != expected.shape or not _finite(output, expected):
            required = max_abs = math.inf
            continue
        error = np.abs(output.astype(np.float64) - expected)
        required = max(required, float((error / (1 + np.abs(expected))).max()))
        max_abs = max(max_abs, float(error.max()))
    first = next(iter(reference))
    samples = len(reference[first])
    agreement = 0.0
    if first in outputs and outputs[first].shape == reference[first].shape:
        agreement = float((outputs[first].argmax(axis=-1) == reference[first].argmax(axis=-1)).mean())
    return Parity(samples, required, tolerance, max_abs, agreement)


def _finite(*arrays: NDArray[Any]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)
