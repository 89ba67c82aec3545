"""`ACDC`: alternating compressed and decompressed training, attached to a model and optimizer of yours.

    acdc = ACDC(model, optimizer, lr_scheduler, schedule=Schedule.paper(epochs=100), pattern=Unstructured(0.9))
    for epoch in acdc.epochs():
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
        lr_scheduler.step(); acdc.record(accuracy=evaluate(model))
    acdc.save_pair("runs/mine", example_inputs=(x,))

What happens when, after Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
Networks" (arXiv 2106.12379):

- At the start of a sparse phase, before its first forward pass, the pattern chooses which weights live. The
  others are set to zero, and stay there: their gradients are masked as they arrive in `.grad` (so that clipping
  and accumulation see what the optimizer sees), and they are set to zero after every step (momentum that was
  gathered before would move them).
- At the start of a dense phase that follows a sparse one, before its first forward pass, every weight is free
  again, from zero, and the optimizer's momentum is set to zero: that of *all* its parameters, whether or not
  they have a gradient at that moment. (The authors' code skips those without one, which under torch 2.0 and
  later, where `zero_grad` sets gradients to None, is all of them.)
- Nothing else is touched: no reset at the start of a sparse phase, batch norm statistics carry over, and the
  learning rate goes on.
- At the end of the last dense phase, model, optimizer, LR scheduler and torch's random numbers are remembered.
  After the final sparse phase they are taken back there, and the same epochs run once more, densely, on the
  same random numbers: that is the twin.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import TrainingError, UsageError
from ..extras import extra
from ..pair import Half, check_place
from .pattern import Pattern
from .schedule import Kind, Phase, Schedule

if TYPE_CHECKING:
    from ..pair import Pair

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


@dataclass(frozen=True)
class Epoch:
    """An epoch to train: its index in the schedule, whether the network is sparse in it, and whose it is.

    The epochs before the twin leaves are common to both halves; they count as the sparse one's.
    """

    index: int
    kind: Kind
    half: Half


@dataclass(frozen=True)
class _Snapshot:
    """Everything that the twin starts from."""

    model: dict[str, Any]
    buffers: dict[str, Tensor]  # among them those that are not in the state dict
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any] | None
    random: Tensor
    random_cuda: list[Tensor]


class ACDC:
    """AC/DC on a model and its optimizer. `epochs()` runs both halves, `save_pair()` writes them.

    The optimizer may be any whose state is known here (SGD, Adam, AdamW and their like). State that belongs to
    neither the model, the optimizer nor the LR scheduler (a GradScaler, an average of weights, the random
    numbers of numpy) is not taken back for the twin: do it where `epoch.half` becomes "dense", if it matters.

    Raises:
        UsageError: weights that the optimizer doesn't hold, that are frozen, or that can't be pruned; an
            optimizer whose momentum is not known here; see also the pattern.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, lr_scheduler: Any = None, *, schedule: Schedule, pattern: Pattern
    ) -> None:
        self.schedule = schedule
        self.pattern = pattern
        self.history: list[tuple[Epoch, dict[str, float]]] = []
        self._model = _unwrap(model)
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._weights = pattern.layers(self._model)
        self._dead: dict[str, Tensor] = {}  # True where a weight is held at zero; empty in dense phases
        self._states: dict[Half, dict[str, Tensor]] = {}
        self._epoch: Epoch | None = None
        self._check_weights()
        self._check_state()
        self._handles: list[Any] = [
            weight.register_hook(partial(self._mask_gradient, name))  # type: ignore[no-untyped-call]
            for name, weight in self._weights.items()
        ]
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    # ---------------------------------------------------------------------------------------------- the run

    def epochs(self) -> Iterator[Epoch]:
        """The epochs to train, in order: the schedule to its sparse end, and then the twin's own ones.

        Whatever a phase begins with is done before its first epoch is yielded. When the loop is over, the hooks
        are gone and the model is the dense twin.

        Raises:
            UsageError: the run was started before; an optimizer whose state can't be reset.
            TrainingError: weights that are not finite, or that something else moved away from zero.
        """
        if self._epoch:
            raise UsageError("This run was started before.", "Attach a new ACDC to start another one.")
        for phase in self.schedule.phases:
            self._enter(phase)
            yield from self._run(phase, phase.kind, "sparse")
            self._leave()
            if phase == self.schedule.last_dense:
                snapshot = self._snapshot()
        self._stash("sparse")
        self._restore(snapshot)
        yield from self._run(self.schedule.final, "dense", "dense")
        self._stash("dense")
        self.detach()

    def record(self, **metrics: float) -> None:
        """Attach `metrics` to the current epoch. Those of the last epoch of each half go into the pair.

        Raises:
            UsageError: there is no current epoch.
            TrainingError: a metric that is NaN or infinite.
        """
        if self._epoch is None:
            raise UsageError("There is no epoch to record for.", "Call record() in the loop over epochs().")
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} in {_place(self._epoch)}.",
                    "The run diverged; train with a lower learning rate, or a longer warm-up.",
                )
        if self.history and self.history[-1][0] == self._epoch:
            self.history[-1][1].update(values)
        else:
            self.history.append((self._epoch, values))

    def save_pair(
        self,
        path: str | Path,
        example_inputs: Sequence[Any] | Tensor,
        *,
        name: str | None = None,
        pipeline: str | None = None,
        seed: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
    ) -> Pair:
        """Write both halves as a pair: the folder `path`, which appears only when it is whole.

        The model that you hold is not touched: the halves are exported from a copy of it, on the CPU.

        Args:
            example_inputs: what the model is called with, one array or tensor an input, the batch as first axis.
                Real samples: the outputs for them (the first 64) are what runtimes are compared with.
            name: of the pair, letters, digits, '.', '_' and '-'; made from the folder's by default.
            pipeline: the text of the pipeline file that was the recipe, where there was one.
            input_names, output_names: of the ONNX graph; "input" and "logits" by default, and "input_0",
                "input_1", ... where there are several.

        Raises:
            UsageError: the run is not complete, or the model can't be exported.
            RuntimeUnavailable: onnx or onnxscript is not installed.
            OutputError: the folder can't be written.
            PairError: the trained weights make no sound pair.
        """
        if set(self._states) != {"sparse", "dense"}:
            where = f"it is in {_place(self._epoch)}" if self._epoch else "it has not begun"
            raise UsageError(
                f"The run is not complete: {where}, and both halves are needed.",
                "Save the pair after the loop over epochs() has ended by itself, without a break.",
            )
        with extra("train"):
            from .to_onnx import write_pair

        path = Path(path)
        name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-._") or "pair"
        check_place(path)  # before minutes of exporting
        return write_pair(
            path,
            self._model,
            self._states["sparse"],
            self._states["dense"],
            example_inputs,
            pattern=self.pattern,
            pruned=tuple(self._weights),
            schedule=self.schedule,
            metrics=self.metrics,
            name=name,
            pipeline=pipeline,
            seed=seed,
            input_names=input_names,
            output_names=output_names,
        )

    def detach(self) -> None:
        """Remove the hooks. The weights stay as they are, and nothing holds them at zero any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._dead = {}

    @property
    def sparsity(self) -> float:
        """The share of the pattern's weights that are held at zero now, 0 to 1."""
        held = sum(int(dead.sum()) for dead in self._dead.values())
        return held / sum(weight.numel() for weight in self._weights.values())

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """What was recorded in the last epoch of each half. An earlier epoch had other weights than the pair."""
        last = self.schedule.epochs - 1
        return {epoch.half: dict(metrics) for epoch, metrics in self.history if epoch.index == last}

    # --------------------------------------------------------------------------------------------- its phases

    def _run(self, phase: Phase, kind: Kind, half: Half) -> Iterator[Epoch]:
        for index in range(phase.start, phase.end):
            self._epoch = Epoch(index, kind, half)
            yield self._epoch
            self._check_state()  # after the first epoch there is some, long before it has to be reset

    def _enter(self, phase: Phase) -> None:
        self._check_weights()
        if phase.kind == "sparse":
            masks = self.pattern.masks(self._weights)
            self._dead = {name: ~mask for name, mask in masks.items()}
            self._zero()
        elif phase.start > 0:
            self._reset_momentum()

    def _leave(self) -> None:
        """The end of a phase: what was to be zero has to be zero, and is free from here on."""
        for name, dead in self._dead.items():
            moved = int(self._weights[name][dead].count_nonzero())
            if moved:
                raise TrainingError(
                    f"{moved} weights of {name} that are held at zero are not zero after epoch {self._index}.",
                    "Change the weights only through the optimizer that ACDC is attached to.",
                )
        self._dead = {}

    def _stash(self, half: Half) -> None:
        """Keep the weights of a half that is done."""
        state = {name: value for name, value in self._model.state_dict().items() if isinstance(value, Tensor)}
        for name, value in state.items():
            if not value.isfinite().all():
                raise TrainingError(
                    f"{name} of the {half} half is not finite after epoch {self._index}.",
                    "The run diverged; train with a lower learning rate, or a longer warm-up.",
                )
        self._states[half] = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    @property
    def _index(self) -> int:
        assert self._epoch is not None
        return self._epoch.index

    # ---------------------------------------------------------------------------------------------- the masks

    def _mask_gradient(self, name: str, gradient: Tensor) -> Tensor | None:
        dead = self._dead.get(name)
        return None if dead is None else gradient.masked_fill(dead, 0)

    def _after_step(self, *_: Any) -> None:
        self._zero()

    @torch.no_grad()
    def _zero(self) -> None:
        """Set what is held at zero to zero: filled, not multiplied, since NaN times zero is NaN."""
        for name, dead in self._dead.items():
            weight = self._weights[name]
            weight.masked_fill_(dead, 0)
            if weight.grad is not None:  # gathered before the phase began, by a loop that accumulates
                weight.grad.masked_fill_(dead, 0)

    def _check_weights(self) -> None:
        """The weights that carry the hooks are those that the model uses and the optimizer moves."""
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        current = dict(self._model.named_parameters())
        for name, weight in self._weights.items():
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

    # ------------------------------------------------------------------------------------------- the momentum

    def _check_state(self) -> None:
        """Refuse an optimizer whose state can't be reset as soon as that is seen."""
        for state in self._optimizer.state.values():
            for key, value in state.items():
                if value is not None and not (key in _FRESH and isinstance(value, Tensor | int | float)):
                    raise UsageError(
                        f"{type(self._optimizer).__name__} keeps '{key}', which ACDC doesn't know how to reset "
                        "when a dense phase begins.",
                        "Use SGD, Adam, AdamW, NAdam, RAdam, Adamax or RMSprop.",
                    )

    @torch.no_grad()
    def _reset_momentum(self) -> None:
        """Take the state of every parameter back to what it began from, whether or not it has a gradient now."""
        self._check_state()
        for state in self._optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value.fill_(_FRESH[key])
                elif value is not None:
                    state[key] = type(value)(_FRESH[key])

    # ------------------------------------------------------------------------------------------- the twin

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(
            model=copy.deepcopy(self._model.state_dict()),
            buffers={name: buffer.clone() for name, buffer in self._model.named_buffers()},
            optimizer=copy.deepcopy(self._optimizer.state_dict()),
            lr_scheduler=copy.deepcopy(self._lr_scheduler.state_dict()) if self._lr_scheduler else None,
            random=torch.get_rng_state(),
            random_cuda=_cuda_random(),
        )

    @torch.no_grad()
    def _restore(self, snapshot: _Snapshot) -> None:
        self._model.load_state_dict(snapshot.model)
        for name, buffer in self._model.named_buffers():
            buffer.copy_(snapshot.buffers[name])
        self._model.zero_grad(set_to_none=True)  # those of the sparse half are none of the twin's business
        self._optimizer.load_state_dict(snapshot.optimizer)
        if self._lr_scheduler:
            self._lr_scheduler.load_state_dict(snapshot.lr_scheduler)
        torch.set_rng_state(snapshot.random)
        if snapshot.random_cuda:
            torch.cuda.set_rng_state_all(snapshot.random_cuda)


def _unwrap(model: nn.Module) -> nn.Module:
    """The network itself inside torch.compile's and the data-parallel wrappers, which rename its parameters."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _cuda_random() -> list[Tensor]:
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if in_use else []


def _place(epoch: Epoch) -> str:
    return f"epoch {epoch.index}, a {epoch.kind} one of the {epoch.half} half"
