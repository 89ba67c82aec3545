"""The parts that a batch is run in: an engine can be several times as fast at the batch sizes that its kernels are made
for. Which ones pay depends on the network, its zeros and its precision, so they are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

from ..evidence import latency
from ..evidence.engine import Arrays
from ..evidence.latency import Clock, Open

_WORTH = 0.9
"""Times as long as the whole batch that its parts may take: what is about as fast is not worth the parts."""


def candidates(batch_size: int, parts: Sequence[int]) -> list[int]:
    """Into which parts (in samples) a batch may be split, whole as it is first.

    `parts` are the batch sizes that suit an engine, with their multiples: what is one of those is not split.
    """
    suits = any(batch_size == part or (part > 1 and batch_size % part == 0) for part in parts)
    return [batch_size, *(() if suits else parts)]


def fastest(variants: Mapping[int, Open], inputs: Arrays, batch_size: int, clock: Clock = perf_counter) -> int:
    """The part (in samples) in which a batch is run fastest; all of it, where the others gain less than a tenth.

    Args:
        variants: by part, an engine that runs a whole batch in such parts.

    Raises:
        EngineError: an engine can't be opened.
    """
    found = latency.measure(
        {str(part): variant for part, variant in variants.items()},
        inputs,
        batch_size=batch_size,
        plan=latency.Plan(most=1),
        clock=clock,
    )
    p50 = {int(name): variant.p50 for name, variant in found.latency().variants.items()}
    best = min(p50, key=lambda part: p50[part], default=batch_size)
    return best if p50 and p50[best] < _WORTH * p50[batch_size] else batch_size
