"""Hold dropped weights at zero, so that the kept ones move as if the network had no others.

Three things together make the kept weights follow exactly what an optimizer over them alone would do:

- Gradients are masked as they arrive in `.grad`. So whatever looks at them before the step (clipping by norm,
  accumulation, a GradScaler's search for infinities) sees what the optimizer sees.
- After every step the dropped weights are set to zero again. The optimizer's state from before the phase (momentum, an
  average of gradients) would move them. Weight decay of a zero is zero.
- Dropped values are cleared by a bitwise AND, not multiplied: NaN times zero is NaN. It is also three times as fast as
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

# The state that an optimizer keeps for a parameter, and its first value. These are the keys of SGD, Adam, AdamW, NAdam,
# RAdam, Adamax, RMSprop and of those that use the same names.
_INITIAL_STATE = {
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

# The integer type of each float size, in bytes, for clearing bits. Masks are always int8: -1 becomes all ones.
_BITS = {2: torch.int16, 4: torch.int32}


class Enforcement:
    """Holds weights of a pattern at zero. `weights` are all weights of the pattern, by name."""

    def __init__(self, weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        self.weights = dict(weights)
        self._kept: dict[str, Tensor] = {}  # int8 masks: -1 is kept, 0 is held at zero; empty in dense phases
        self._handles: list[Any] = [
            weight.register_post_accumulate_grad_hook(partial(self._mask_gradient, name))  # type: ignore[no-untyped-call]
            for name, weight in self.weights.items()
        ]
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._zero()))

    @property
    def dropped(self) -> dict[str, Tensor]:
        """Boolean masks, True where a weight is held at zero; empty in dense phases."""
        return {name: kept == 0 for name, kept in self._kept.items()}

    def hold(self, dropped: Mapping[str, Tensor]) -> None:
        """Set weights to zero and hold them there; the boolean masks are True where a weight is dropped."""
        self._kept = {name: mask.logical_not().to(torch.int8).neg_() for name, mask in dropped.items()}
        self._zero()
        for name, weight in self.weights.items():  # a loop that accumulates may have gradients from before the phase
            self._mask_gradient(name, weight)

    def free(self) -> None:
        """Release all weights. They stay at zero until a step moves them."""
        self._kept = {}

    def detach(self) -> None:
        """Remove the hooks, for good."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.free()

    @property
    def sparsity(self) -> float:
        """The share of the weights that are held at zero now, 0 to 1."""
        held = sum(int((kept == 0).sum()) for kept in self._kept.values())
        return held / sum(weight.numel() for weight in self.weights.values())

    def require_zeros(self, weights: Mapping[str, Tensor], when: str) -> None:
        """Check that all weights held at zero are zero. Raises `TrainingError` for those that moved."""
        for name, dropped in self.dropped.items():
            moved = int(weights[name][dropped].count_nonzero())
            if moved:
                raise TrainingError(
                    f"{moved} weights of {name} that are held at zero are not zero after {when}.",
                    "Change the weights only through the optimizer that ACDC is attached to.",
                )

    def _mask_gradient(self, name: str, weight: Tensor) -> None:
        if name in self._kept and weight.grad is not None:
            _clear(weight.grad, self._kept[name])

    def _zero(self) -> None:
        for name, kept in self._kept.items():
            _clear(self.weights[name], kept)


def _clear(values: Tensor, kept: Tensor) -> None:
    """Set values that are not kept to zero, in place."""
    values.detach().view(_BITS[values.element_size()]).bitwise_and_(kept)


def torch_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer of torch inside of wrappers that only pass everything on to it (Accelerate's, Lightning's).

    Raises:
        UsageError: it has no hooks on its steps, by which dropped weights are held at zero, or holds another optimizer
            with a state of its own.
    """
    while inner := _inner(optimizer):
        if not _passes_on(optimizer, inner):
            raise UsageError(
                f"{type(optimizer).__name__} wraps {type(inner).__name__}, and has a state or groups of its own.",
                "Give ACDC the optimizer inside, if the wrapper moves no weights by itself; else train without it.",
            )
        optimizer = inner
    if not isinstance(optimizer, Optimizer) or "_optimizer_step_post_hooks" not in vars(optimizer):
        raise UsageError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer that tells of its steps.",
            "Give ACDC the torch optimizer that takes the steps; one of your own has to call super().__init__.",
        )
    return optimizer


_INNER = ("optimizer", "_optimizer", "base_optimizer")  # what wrappers call the optimizer inside


def _inner(optimizer: Any) -> Optimizer | None:
    """The optimizer that another one holds; None where it holds none."""
    values = (_attribute(optimizer, name) for name in _INNER)
    return next((value for value in values if isinstance(value, Optimizer) and value is not optimizer), None)


def _attribute(value: Any, name: str) -> Any:
    """An attribute of what somebody else wrote; None where there is none, or it can't be had."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _passes_on(wrapper: Any, inner: Optimizer) -> bool:
    """Whether a wrapper has the state and the groups of the optimizer inside, and none of its own."""
    return _attribute(wrapper, "state") is inner.state and _attribute(wrapper, "param_groups") is inner.param_groups


def check_weights(model: nn.Module, weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Check that the model uses, and the optimizer moves, the weights that carry the hooks. Raises `UsageError`."""
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
    """Refuse an optimizer whose state can't be reset. Raises `UsageError`.

    Call it early: the state exists after the first step, and has to be reset much later.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if value is not None and not (key in _INITIAL_STATE and isinstance(value, Tensor | int | float)):
                raise UsageError(
                    f"{type(optimizer).__name__} keeps '{key}', which ACDC doesn't know how to reset "
                    "when a dense phase begins.",
                    "Use SGD, Adam, AdamW, NAdam, RAdam, Adamax or RMSprop.",
                )


@torch.no_grad()
def reset_momentum(optimizer: Optimizer) -> None:
    """Reset the state of every parameter to its first value, whether or not it has a gradient now.

    Raises `UsageError` as `check_state` does.
    """
    check_state(optimizer)
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                value.fill_(_INITIAL_STATE[key])
            elif value is not None:
                state[key] = type(value)(_INITIAL_STATE[key])
