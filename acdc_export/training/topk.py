"""Exact selection of the smallest magnitudes among many tensors, without concatenating them.

The bits of a non-negative float32, read as an integer, order as the number does. So counting finds the wanted rank, as
in a radix sort: how many magnitudes share each value of their upper 16 bits, which of these buckets holds the rank, and
then the same for the lower 16 bits within it. Only the counts pass between tensors: they add up over tensors, devices,
and (some day) over the processes of a distributed run. Tensors are read in pieces, so that hardly any memory is needed
beside the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ..errors import TrainingError, UsageError

_HALF = 16  # bits
_INFINITE = 0x7F80  # the upper half of infinity's bits; those of a NaN are no smaller
_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds these without rounding
_PIECE = 1 << 18  # weights read at a time: a megabyte of bits stays in the cache of a core


def keep_largest(weights: Mapping[str, Tensor], zeros: int) -> dict[str, Tensor]:
    """Select masks that drop the `zeros` smallest magnitudes of all `weights` together, and keep the rest.

    Among equal magnitudes, the tensor that comes first loses its own first, and within a tensor the lower flat index
    goes first. So the result depends on neither the device nor the memory layout.

    Returns:
        Boolean masks by name, with the shape and device of the weights: True is kept. Exactly `zeros` are False.

    Raises:
        UsageError: float32 doesn't hold a weight's type exactly, or `zeros` is outside [0, number of weights].
        TrainingError: weights are NaN or infinite.
    """
    total = sum(weight.numel() for weight in weights.values())
    if not 0 <= zeros <= total:
        raise UsageError(f"{zeros} of {total} weights can't be zero.", "Give a number between 0 and all of them.")
    for name, weight in weights.items():
        require_exact(name, weight)
    counts = _counts(weights, _upper_half)
    if counts[_INFINITE:].any():
        name = next(name for name, weight in weights.items() if not weight.isfinite().all())
        raise TrainingError(
            f"{name} holds weights that are NaN or infinite.", "The run diverged; train with a lower learning rate."
        )
    if zeros == 0:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}

    upper, below = _bucket(counts, zeros)
    lower, below_within = _bucket(_counts(weights, partial(_lower_half, upper=upper)), zeros - below)
    threshold = (upper << _HALF) | lower
    ties = zeros - below - below_within  # how many magnitudes that equal the threshold are dropped

    masks = {}
    for name, weight in weights.items():
        mask = torch.empty(weight.numel(), dtype=torch.bool, device=weight.device)
        for bits, mask_piece in zip(_pieces(weight), mask.split(_PIECE), strict=True):  # type: ignore[no-untyped-call]
            torch.gt(bits, threshold, out=mask_piece)
            equal = (bits == threshold).nonzero().squeeze(1)  # indices in ascending order
            kept = equal[ties:]
            ties -= len(equal) - len(kept)
            mask_piece[kept] = True
        # Every step uses the mask beside the weight, so it gets the weight's layout (channels_last, say).
        masks[name] = torch.empty_like(weight, dtype=torch.bool).copy_(mask.view(weight.shape))
    return masks


def require_exact(name: str, weight: Tensor) -> None:
    """Refuse a weight whose type float32 doesn't hold exactly. Raises `UsageError`."""
    if weight.dtype not in _EXACT:
        raise UsageError(
            f"{name} is {str(weight.dtype).removeprefix('torch.')}; the pattern is chosen among float32 magnitudes.",
            "Convert the model with `model.float()` before the optimizer is made.",
        )


def _pieces(weight: Tensor) -> Iterator[Tensor]:
    """Yield the magnitudes' bits as flat int32 pieces. They order as the magnitudes do; -0.0 and 0.0 are both 0."""
    for piece in weight.detach().flatten().split(_PIECE):  # type: ignore[no-untyped-call]
        yield piece.to(torch.float32).abs().view(torch.int32)


def _counts(weights: Mapping[str, Tensor], bucket_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Count the magnitudes of all tensors in each bucket: int64 of shape (65536,), on the CPU."""
    counts = torch.zeros(1 << _HALF, dtype=torch.int64)
    for weight in weights.values():
        for bits in _pieces(weight):
            counts += torch.bincount(bucket_of(bits), minlength=1 << _HALF).cpu()
    return counts


def _upper_half(bits: Tensor) -> Tensor:
    return bits >> _HALF


def _lower_half(bits: Tensor, upper: int) -> Tensor:
    return bits[bits >> _HALF == upper] & ((1 << _HALF) - 1)


def _bucket(counts: Tensor, rank: int) -> tuple[int, int]:
    """Find the bucket of the `rank`-th smallest (counted from 1), and the count in the buckets before it."""
    cumulative = counts.cumsum(0)
    bucket = int(torch.searchsorted(cumulative, rank))
    return bucket, int(cumulative[bucket] - counts[bucket])
