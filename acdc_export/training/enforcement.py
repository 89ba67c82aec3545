"""Holding weights at zero so that the others move as if the network had no more than them.

Three things together make the surviving weights follow exactly what an optimizer over them alone would do:

- Gradients are masked as they arrive in `.grad`, so that what looks at them before the step (clipping by norm,
  accumulation, a GradScaler's search for infinities) sees what the optimizer sees.
- After every step the weights are set to zero again, since what the optimizer gathered before the phase (momentum, an
  average of gradients) would move them. Weight decay of a zero is zero.
- What is dropped is blotted out bit by bit, not multiplied: NaN times zero is NaN. It is also three times as fast as
  filling (docs/performance.md).

A step that a GradScaler skips calls no hook and moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import TrainingError, UsageError

# What an optimizer keeps for a parameter, and what it starts from: the state that "momentum" means, of
# SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop and those that use their names.
_FRESH = {
    "momentum_buffer": 0,
    "exp_avg": 0,
    "exp_avg_sq": 0,
    "max_exp_avg_sq": 0,
    "exp_inf": 0,
    "square_avg": 0,
    "grad_avg": 0,
    "mu_product": 1,
    "step": 0,
}


# The integers of a float's size, whose bits can be blotted out. Masks are int8 all the same: -1 becomes all ones.
_BITS = {2: torch.int16, 4: torch.int32}


class Enforcement:
    """The weights of a pattern, by name, and which of them are held at zero."""

    def __init__(self, weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        self.weights = dict(weights)
        self._live: dict[str, Tensor] = {}  # int8: -1 lives, 0 is held at zero; empty where nothing is held
        self._handles: list[Any] = [
            weight.register_post_accumulate_grad_hook(partial(self._mask_gradient, name))  # type: ignore[no-untyped-call]
            for name, weight in self.weights.items()
        ]
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._zero()))

    @property
    def dead(self) -> dict[str, Tensor]:
        """Boolean masks, True where a weight is held at zero; empty in dense phases."""
        return {name: live == 0 for name, live in self._live.items()}

    def hold(self, dead: Mapping[str, Tensor]) -> None:
        """Set these to zero, and keep them there."""
        self._live = {name: mask.logical_not().to(torch.int8).neg_() for name, mask in dead.items()}
        self._zero()
        for name, weight in self.weights.items():  # gathered before the phase began, by a loop that accumulates
            self._mask_gradient(name, weight)

    def free(self) -> None:
        """Let go of all weights, where they are: at zero."""
        self._live = {}

    def detach(self) -> None:
        """Remove the hooks, for good."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.free()

    @property
    def sparsity(self) -> float:
        """The share of the weights that are held at zero now, 0 to 1."""
        held = sum(int((live == 0).sum()) for live in self._live.values())
        return held / sum(weight.numel() for weight in self.weights.values())

    def require_zeros(self, weights: Mapping[str, Tensor], when: str) -> None:
        """Refuse weights of which one that is held at zero isn't. Raises `TrainingError`."""
        for name, dead in self.dead.items():
            moved = int(weights[name][dead].count_nonzero())
            if moved:
                raise TrainingError(
                    f"{moved} weights of {name} that are held at zero are not zero after {when}.",
                    "Change the weights only through the optimizer that ACDC is attached to.",
                )

    def _mask_gradient(self, name: str, weight: Tensor) -> None:
        if name in self._live and weight.grad is not None:
            _blot(weight.grad, self._live[name])

    def _zero(self) -> None:
        for name, live in self._live.items():
            _blot(self.weights[name], live)


def _blot(values: Tensor, live: Tensor) -> None:
    """Set what doesn't live to zero, in place."""
    values.detach().view(_BITS[values.element_size()]).bitwise_and_(live)


def check_weights(model: nn.Module, weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """The weights that carry the hooks are those that the model uses and the optimizer moves. Raises `UsageError`."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    current = dict(model.named_parameters())
    for name, weight in weights.items():
        if current.get(name) is not weight:
            raise UsageError(
                f"{name} was replaced by another parameter since ACDC was attached.",
                "Move, convert or load the model first, then make the optimizer, and then attach ACDC.",
            )
        if id(weight) not in held:
            raise UsageError(
                f"The optimizer doesn't hold {name}, which is to be pruned.",
                "Give the optimizer all of the model's parameters, or exclude that layer from the pattern.",
            )
        if not weight.requires_grad:
            raise UsageError(
                f"{name} is frozen (requires_grad is False), and is to be pruned.",
                "Unfreeze it, or exclude that layer from the pattern.",
            )


def check_state(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state can't be reset as soon as that is seen. Raises `UsageError`."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if value is not None and not (key in _FRESH and isinstance(value, Tensor | int | float)):
                raise UsageError(
                    f"{type(optimizer).__name__} keeps '{key}', which ACDC doesn't know how to reset "
                    "when a dense phase begins.",
                    "Use SGD, Adam, AdamW, NAdam, RAdam, Adamax or RMSprop.",
                )


@torch.no_grad()
def reset_momentum(optimizer: Optimizer) -> None:
    """Take the state of every parameter back to what it began from, whether or not it has a gradient now."""
    check_state(optimizer)
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                value.fill_(_FRESH[key])
            elif value is not None:
                state[key] = type(value)(_FRESH[key])
