"""`ACDC`: alternating compressed and decompressed training, attached to a model and optimizer of yours.

    acdc = ACDC(model, optimizer, lr_scheduler, schedule=Schedule.paper(epochs=100), pattern=Unstructured(0.9))
    for epoch in acdc.epochs(checkpoint="runs/mine.ckpt"):
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
        lr_scheduler.step(); acdc.record(accuracy=evaluate(model))
    acdc.save_pair("runs/mine", example_inputs=(x,))

What happens when, after Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
Networks" (arXiv 2106.12379):

- At the start of a sparse phase, before its first forward pass, the pattern chooses which weights live. The
  others are set to zero, and stay there (`enforcement` says how).
- At the start of a dense phase that follows a sparse one, before its first forward pass, every weight is free
  again, from zero, and the optimizer's momentum is set to zero: that of *all* its parameters, whether or not
  they have a gradient at that moment. (The authors' code skips those without one, which under torch 2.0 and
  later, where `zero_grad` sets gradients to None, is all of them.)
- Nothing else is touched: no reset at the start of a sparse phase, batch norm statistics carry over, and the
  learning rate goes on.
- At the end of the last dense phase, the state of the run is remembered. After the final sparse phase it is
  taken back there, and the same epochs run once more, densely, on the same random numbers: that is the twin.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import TrainingError, UsageError
from ..extras import extra
from ..files import check_file
from ..pair import Half, check_place
from ..records.history import EpochRecord, PhaseRecord
from . import checkpoint as checkpoints
from .enforcement import Enforcement, check_state, check_weights, reset_momentum
from .pattern import Pattern
from .schedule import Kind, Phase, Schedule, Unit

if TYPE_CHECKING:
    from ..pair import Pair


@dataclass(frozen=True)
class Epoch:
    """An epoch to train: its index in the schedule, whether the network is sparse in it, and whose it is.

    The epochs before the twin leaves are common to both halves; they count as the sparse one's.
    """

    index: int
    kind: Kind
    half: Half


@dataclass(frozen=True)
class Step(Epoch):
    """A step to train, of a schedule that counts in steps."""


@dataclass(frozen=True)
class _Leg:
    """A part of the way: a phase of the schedule, or the twin's own one."""

    phase: Phase
    kind: Kind
    half: Half


class ACDC:
    """AC/DC on a model and its optimizer. `epochs()` (or `steps()`) runs both halves, `save_pair()` writes them.

    Args:
        model: may be compiled (`torch.compile`) or data-parallel.
        optimizer: any whose state is known here: SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop and their like.
        lr_scheduler: taken back for the twin; may be None.
        schedule, pattern: when the network is sparse, and which weights then live.
        average: a running average of the model's weights (`torch.optim.swa_utils.AveragedModel`) that your loop
            updates. What is dropped at the start of a sparse phase is dropped from it too, and the pair holds its
            weights instead of the model's.
        also: other objects with `state_dict` and `load_state_dict`, or torch.Generators, that are part of the run's
            state: a GradScaler, a sampler. They are taken back for the twin, and kept in checkpoints.

    Raises:
        UsageError: weights that the optimizer doesn't hold, that are frozen, or that can't be pruned; an optimizer
            whose momentum is not known here; see also the pattern.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: Any = None,
        *,
        schedule: Schedule,
        pattern: Pattern,
        average: nn.Module | None = None,
        also: Sequence[Any] = (),
    ) -> None:
        self.schedule = schedule
        self.pattern = pattern
        self.history: list[EpochRecord] = []
        self.phases: list[PhaseRecord] = []
        self._model = unwrapped(model)
        self._average = average
        self._optimizer = optimizer
        self._parts = checkpoints.Parts(
            self._model, optimizer, lr_scheduler, (*also, *([] if average is None else [average]))
        )
        selection = pattern.select(self._model)
        self.left_dense = selection.dense
        """The layers with weights that the pattern leaves dense, by module name, and why."""
        check_weights(self._model, selection.weights, optimizer)
        check_state(optimizer)
        self._enforcement = Enforcement(selection.weights, optimizer)
        self._legs = [*(_Leg(phase, phase.kind, "sparse") for phase in schedule.phases)]
        self._legs.append(_Leg(schedule.final, "dense", "dense"))
        self._leg, self._next = 0, -1  # where the run goes on: the leg, and what of it; -1 before it has begun
        self._before: dict[str, Tensor] = {}  # what the sparse phase before dropped
        self._twin: checkpoints.State | None = None  # what the twin starts from
        self._states: dict[Half, dict[str, Tensor]] = {}
        self._now: Epoch | None = None
        self._resumed = False

    # ---------------------------------------------------------------------------------------------- the run

    def epochs(self, checkpoint: str | Path | None = None, every: int = 1) -> Iterator[Epoch]:
        """The epochs to train, in order: the schedule to its sparse end, and then the twin's own ones.

        Whatever a phase begins with is done before its first epoch is yielded. When the loop is over, the hooks
        are gone and the model is the dense twin.

        Args:
            checkpoint: a file that keeps the state of the run, written anew after `every` epochs and each phase. If it
                is there already, the run goes on where it ended: on the same machine with as many threads, it ends
                with the same bits. Gradients that a loop gathers from one epoch to the next are not kept.

        Raises:
            UsageError: the run was started before; a schedule in steps; an optimizer whose state can't be reset.
            TrainingError: weights that are not finite, or that something else moved away from zero.
            CheckpointError: a checkpoint of another run, or one that can't be read.
            OutputError: the checkpoint can't be written.
        """
        return self._run("epoch", checkpoint, every)

    def steps(self, checkpoint: str | Path | None = None, every: int = 1000) -> Iterator[Step]:
        """The steps to train, of a schedule that counts in them; everything else is as for `epochs`."""
        return self._run("step", checkpoint, every)  # type: ignore[return-value]

    def record(self, **metrics: float) -> None:
        """Attach `metrics` to the current epoch. Those of the last epoch of each half go into the pair.

        Raises:
            UsageError: there is no current epoch.
            TrainingError: a metric that is NaN or infinite.
        """
        if self._now is None:
            raise UsageError("There is no epoch to record for.", "Call record() in the loop over epochs().")
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} in {self._place}.",
                    "The run diverged; train with a lower learning rate, or a longer warm-up.",
                )
        now = self._now
        if self.history and (self.history[-1].index, self.history[-1].half) == (now.index, now.half):
            values = {**self.history.pop().metrics, **values}
        self.history.append(EpochRecord(now.index, now.half, now.kind, values))

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
            where = f"it is in {self._place}" if self._now else "it has not begun"
            raise UsageError(
                f"The run is not complete: {where}, and both halves are needed.",
                f"Save the pair after the loop over {self.schedule.unit}s() has ended by itself, without a break.",
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
            pruned=tuple(self._enforcement.weights),
            left_dense=self.left_dense,
            unit=self.schedule.unit,
            phases=self.phases,
            epochs=self.history,
            metrics=self.metrics,
            name=name,
            pipeline=pipeline,
            seed=seed,
            input_names=input_names,
            output_names=output_names,
        )

    def detach(self) -> None:
        """Remove the hooks. The weights stay as they are, and nothing holds them at zero any more."""
        self._enforcement.detach()

    @property
    def resumed(self) -> bool:
        """Whether the run went on from a checkpoint."""
        return self._resumed

    @property
    def done(self) -> int:
        """How many of the schedule's `total` epochs (or steps) are behind."""
        before = sum(leg.phase.length for leg in self._legs[: self._leg])
        return before + (self._next - self._legs[self._leg].phase.start if self._next >= 0 else 0)

    @property
    def sparsity(self) -> float:
        """The share of the pattern's weights that are held at zero now, 0 to 1."""
        return self._enforcement.sparsity

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """What was recorded in the last epoch of each half. An earlier epoch had other weights than the pair."""
        last = self.schedule.length - 1
        return {epoch.half: dict(epoch.metrics) for epoch in self.history if epoch.index == last}

    # ------------------------------------------------------------------------------------------------ its legs

    def _run(self, unit: Unit, checkpoint: str | Path | None, every: int) -> Iterator[Epoch]:
        if self._now:
            raise UsageError("This run was started before.", "Attach a new ACDC to start another one.")
        if unit != self.schedule.unit:
            raise UsageError(
                f"The schedule counts in {self.schedule.unit}s.", f"Loop over {self.schedule.unit}s() instead."
            )
        if every < 1:
            raise UsageError(f"A checkpoint after every {every} {unit}s is none.", "Give a number of 1 or more.")
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None:
            check_file(path, "for the checkpoint")
            if path.exists():
                self._resume(path)
        kind = Epoch if unit == "epoch" else Step
        for number in range(self._leg, len(self._legs)):
            leg = self._legs[number]
            if self._next < 0:
                self._begin(leg)
                self._next = leg.phase.start
            for index in range(self._next, leg.phase.end):
                self._now = kind(index, leg.kind, leg.half)
                yield self._now
                check_state(self._optimizer)  # after the first step there is some, long before it has to be reset
                if unit == "epoch":
                    check_weights(self._model, self._enforcement.weights, self._optimizer)
                self._next = index + 1
                if self._next == leg.phase.end:
                    self._finish(leg)
                    self._leg, self._next = number + 1, -1
                if path is not None and (self._next < 0 or self._next % every == 0):
                    self._save(path)
        self.detach()

    def _begin(self, leg: _Leg) -> None:
        if leg.half == "dense":
            assert self._twin is not None
            self._parts.restore(self._twin)
            self._twin = None
            return
        check_weights(self._model, self._enforcement.weights, self._optimizer)
        if leg.kind == "sparse":
            masks = self.pattern.masks(self._enforcement.weights)
            self._enforcement.hold({name: ~mask for name, mask in masks.items()})
            for name, weight in self._averaged().items():
                weight.detach().masked_fill_(~masks[name], 0)
        elif leg.phase.start > 0:
            reset_momentum(self._optimizer)

    def _finish(self, leg: _Leg) -> None:
        """The end of a leg: what was to be zero has to be zero, and is free from here on."""
        self._enforcement.require_zeros(self._enforcement.weights, self._place)
        if self._average is not None:
            self._enforcement.require_zeros(self._averaged(), self._place)
        if leg.half == "sparse":
            self.phases.append(self._phase_record(leg.phase))
        if leg.kind == "sparse":
            self._before = self._enforcement.dead
            self._enforcement.free()
        if leg.phase == self.schedule.last_dense:
            self._twin = copy.deepcopy(self._parts.state())
        if leg.phase == self.schedule.final:
            self._stash(leg.half)

    def _phase_record(self, phase: Phase) -> PhaseRecord:
        weights, dead, before = self._enforcement.weights, self._enforcement.dead, self._before
        nonzeros = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
        if not (dead and before):
            return PhaseRecord(phase.kind, phase.start, phase.end, nonzeros)
        pairs = [(before[name], dead[name]) for name in weights]
        changed = sum(int((then ^ now).sum()) for then, now in pairs)
        regrown = sum(int((then & ~now).sum()) for then, now in pairs)
        dropped = sum(int(then.sum()) for then, _ in pairs)
        total = sum(then.numel() for then, _ in pairs)
        return PhaseRecord(phase.kind, phase.start, phase.end, nonzeros, changed / total, regrown / dropped)

    def _stash(self, half: Half) -> None:
        """Keep the weights of a half that is done."""
        self._require_finite(half)
        model = self._model if self._average is None else unwrapped(self._average.module)  # type: ignore[arg-type]
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self._states[half] = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def _require_finite(self, half: Half) -> None:
        for name, value in self._model.state_dict().items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise TrainingError(
                    f"{name} of the {half} half is not finite after {self._place}.",
                    "The run diverged; train with a lower learning rate, or a longer warm-up.",
                )

    def _averaged(self) -> dict[str, Tensor]:
        """The pattern's weights in the running average, where there is one."""
        if self._average is None:
            return {}
        parameters = dict(unwrapped(self._average.module).named_parameters())  # type: ignore[arg-type]
        return {name: parameters[name] for name in self._enforcement.weights}

    @property
    def _place(self) -> str:
        if self._now is None:
            return "no epoch"
        return f"{self.schedule.unit} {self._now.index}, a {self._now.kind} one of the {self._now.half} half"

    # -------------------------------------------------------------------------------------------- its checkpoints

    def _save(self, path: Path) -> None:
        """Write the state of the run, unless it is one that nobody should go on from."""
        assert self._now is not None
        self._require_finite(self._now.half)
        first = not path.exists()
        state = {
            "identity": self._identity(),
            "leg": self._leg,
            "next": self._next,
            "dead": self._enforcement.dead,
            "before": self._before,
            "history": [asdict(epoch) for epoch in self.history],
            "phases": [asdict(phase) for phase in self.phases],
            "twin": self._twin,
            "states": self._states,
            "parts": self._parts.state(),
        }
        checkpoints.write(path, state)
        if first:
            checkpoints.require_plain(path)

    def _resume(self, path: Path) -> None:
        state = checkpoints.read(path)
        checkpoints.require_same(path, state["identity"], self._identity())
        self._leg, self._next = state["leg"], state["next"]
        self._before = self._placed(state["before"])
        self.history = [EpochRecord(**epoch) for epoch in state["history"]]
        self.phases = [PhaseRecord(**phase) for phase in state["phases"]]
        self._twin, self._states = state["twin"], state["states"]
        self._parts.restore(state["parts"])
        self._enforcement.hold(self._placed(state["dead"]))
        self._resumed = True

    def _placed(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks beside the weights that they are of."""
        return {name: mask.to(self._enforcement.weights[name].device) for name, mask in masks.items()}

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        return {
            "schedule": f"{self.schedule.unit}s {[phase.length for phase in self.schedule.phases]}",
            "pattern": repr(self.pattern),
            "model": {name: str(list(value.shape)) for name, value in self._model.named_parameters()},
            "optimizer": type(self._optimizer).__name__,
            "number of objects in `also`": len(self._parts.also),
        }


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself inside torch.compile's and the data-parallel wrappers, which rename its parameters."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
