"""Parity: does the deployed graph in the engine compute what the trained network computed?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .engine import Arrays


@dataclass(frozen=True)
class Parity:
    """How near an engine's outputs come to the reference logits.

    `required` is the smallest tolerance t for which |output - reference| <= t * (1 + |reference|) holds
    everywhere; infinite where either is not finite or the shapes differ.
    """

    samples: int
    required: float
    tolerance: float
    max_abs: float
    top1_agreement: float  # fraction of samples whose largest logit is the same

    @property
    def ok(self) -> bool:
        return self.required <= self.tolerance


def compare(outputs: Arrays, reference: Arrays, tolerance: float) -> Parity:
    """Hold outputs against the reference, both by name with the batch as first axis.

    The first output is the one whose top-1 is compared.
    """
    required = max_abs = 0.0
    for name, wanted in reference.items():
        got = outputs.get(name)
        if got is None or got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
            required = max_abs = math.inf
            continue
        error = np.abs(got.astype(np.float64) - wanted)
        required = max(required, float((error / (1 + np.abs(wanted))).max()))
        max_abs = max(max_abs, float(error.max()))
    if not reference:  # nothing to hold against is no agreement
        return Parity(0, math.inf, tolerance, math.inf, 0.0)
    first = next(iter(reference))
    samples = len(reference[first])
    same = 0.0
    if first in outputs and outputs[first].shape == reference[first].shape:
        same = float((outputs[first].argmax(axis=-1) == reference[first].argmax(axis=-1)).mean())
    return Parity(samples, required, tolerance, max_abs, same)
