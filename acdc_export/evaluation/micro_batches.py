"""The micro-batches that a batch runs in.

An engine can be several times as fast at the batch sizes that its kernels are made for. Which of them pay depends on
the network, its zeros and its precision, so they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from ..evidence import latency
from ..evidence.engine import Arrays
from ..evidence.latency import Clock, Open

_WORTH = 0.9
"""Micro-batches may take this many times as long as the whole batch. About as fast is not worth the split."""


def fastest(variants: Mapping[int, Open], inputs: Arrays, batch_size: int, clock: Clock = perf_counter) -> int:
    """The micro-batch (in samples) in which a batch runs fastest; the whole batch, where others gain less than a tenth.

    Args:
        variants: by micro-batch, an engine that runs a whole batch in such micro-batches.

    Raises:
        EngineError: an engine can't be opened.
    """
    alternation = latency.measure(
        {str(size): variant for size, variant in variants.items()},
        inputs,
        batch_size=batch_size,
        plan=latency.Plan(most=1),
        clock=clock,
    )
    p50 = {int(name): variant.p50 for name, variant in alternation.latency().variants.items()}
    best = min(p50, key=lambda size: p50[size], default=batch_size)
    return best if p50 and p50[best] < _WORTH * p50[batch_size] else batch_size
