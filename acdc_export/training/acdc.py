"""`ACDC`: alternating compressed and decompressed training, attached to a model and optimizer of yours.

    acdc = ACDC(model, optimizer, lr_scheduler, schedule=Schedule.paper(epochs=100), pattern=Unstructured(0.9))
    for epoch in acdc.epochs(checkpoint="runs/mine.ckpt"):
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
        lr_scheduler.step(); acdc.record(accuracy=evaluate(model))
    acdc.save_pair("runs/mine", example_inputs=(x,))

What happens when, after Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
Networks" (arXiv 2106.12379):

- At the start of a sparse phase, before its first forward pass, the pattern chooses which weights are kept. The
  others are dropped: they are set to zero, and stay there (`enforcement` says how).
- At the start of a dense phase that follows a sparse one, before its first forward pass, every weight is free
  again and starts from zero. The optimizer's momentum is set to zero: that of *all* its parameters, whether or not
  they have a gradient at that moment. (The authors' code skips parameters without a gradient. Under torch 2.0 and
  later, where `zero_grad` sets gradients to None, it skips all of them.)
- Nothing else is touched. There is no reset at the start of a sparse phase, batch norm statistics carry over, and
  the learning rate continues.
- At the end of the last dense phase, the state of the run is remembered. After the final sparse phase the run is
  taken back to that state, and the same epochs run once more, densely, on the same random numbers. That is the twin.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
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
from . import state as states
from .enforcement import Enforcement, check_state, check_weights, reset_momentum, torch_optimizer
from .pattern import Pattern, collapsed
from .schedule import Kind, Phase, Schedule, Unit

if TYPE_CHECKING:
    from ..pair import Pair
    from .network import ExampleInputs


class TrainingWarning(UserWarning):
    """Something that a run goes on from, and that whoever started it should know."""


@dataclass(frozen=True)
class Epoch:
    """An epoch to train: its index in the schedule, whether the network is dense or sparse in it, and its half.

    Both halves share the epochs before the twin leaves; these count as the sparse half's.
    """

    index: int
    kind: Kind
    half: Half


@dataclass(frozen=True)
class Step(Epoch):
    """A step to train, in a schedule that counts in steps."""


@dataclass(frozen=True)
class _Leg:
    """A stretch of the run: a phase of the schedule, or the twin's own one."""

    phase: Phase
    kind: Kind
    half: Half


class ACDC:
    """AC/DC on a model and its optimizer. `epochs()` (or `steps()`) runs both halves, `save_pair()` writes them.

    Args:
        model: may be compiled (`torch.compile`) or data-parallel.
        optimizer: any whose state is known here: SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop and their like. One
            that is wrapped (by Accelerate or Lightning) is taken out of its wrapper.
        lr_scheduler: taken back for the twin; may be None.
        schedule, pattern: when the network is sparse, and which weights it then keeps.
        average: a running average of the model's weights (`torch.optim.swa_utils.AveragedModel`) that your loop
            updates. Weights that are dropped at the start of a sparse phase are dropped from it too, and the pair
            holds its weights instead of the model's.
        also: other objects with `state_dict` and `load_state_dict`, or torch.Generators, that belong to the run's
            state, such as a GradScaler or a sampler. They are taken back for the twin, and kept in checkpoints.

    Raises:
        UsageError: weights are frozen, can't be pruned, or are not the optimizer's; the optimizer's steps can't be
            followed, or its momentum is not known here; the pattern doesn't fit the model; the model's state dict
            doesn't hold its parameters.

    Warns with `TrainingWarning` where every weight of a layer is dropped in a sparse phase. The layer comes back in the
    next dense phase, and stays zero in the sparse half if the phase is the last. The pattern's `layer_collapse` can
    refuse that instead.
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
        self._optimizer = optimizer = torch_optimizer(optimizer)
        checkpoints.check_state_dict(self._model)
        self._parts = checkpoints.Parts(
            self._model, optimizer, lr_scheduler, (*also, *([] if average is None else [average]))
        )
        selection = pattern.select(self._model)
        self.left_dense = selection.dense
        """The weights of two dimensions or more that the pattern leaves dense, and why.

        By the module's name where the parameter is called `weight`, else by the parameter's full name.
        """
        self.collapsed: tuple[str, ...] = ()
        """The weights that the pattern dropped as a whole in the sparse phase that is on."""
        check_weights(self._model, selection.weights, optimizer)
        check_state(optimizer)
        self._enforcement = Enforcement(selection.weights, optimizer)
        self._legs = [*(_Leg(phase, phase.kind, "sparse") for phase in schedule.phases)]
        self._legs.append(_Leg(schedule.final, "dense", "dense"))
        # Where the run goes on: the leg, and the next epoch (or step) of it; -1 before it has begun.
        self._leg, self._next = 0, -1
        self._dropped_before: dict[str, Tensor] = {}  # masks of the sparse phase before, True where it dropped a weight
        self._twin: checkpoints.State | None = None  # that the twin starts from
        self._states: dict[Half, states.StateDict] = {}
        self._current: Epoch | None = None
        self._resumed = False

    # ---------------------------------------------------------------------------------------------- the run

    def epochs(self, checkpoint: str | Path | None = None, every: int = 1) -> Iterator[Epoch]:
        """Yield the epochs to train, in order: the schedule to its sparse end, and then the twin's own epochs.

        A phase is set up before its first epoch is yielded. When the loop is over, the hooks are gone and the model is
        the dense twin.

        Args:
            checkpoint: a file that keeps the state of the run, written anew after `every` epochs and each phase. If it
                exists already, the run goes on where it ended. On the same machine with as many threads, it ends with
                the same bits. Gradients that a loop gathers from one epoch to the next are not kept.

        Raises:
            UsageError: the run was started before, the schedule is in steps, or the optimizer's state can't be reset.
            TrainingError: weights are not finite, or something else moved them away from zero.
            CheckpointError: the checkpoint is of another run, or can't be read.
            OutputError: the checkpoint can't be written.
        """
        return self._run("epoch", checkpoint, every)

    def steps(self, checkpoint: str | Path | None = None, every: int = 1000) -> Iterator[Step]:
        """Yield the steps to train, in a schedule that counts in steps. Everything else is as for `epochs`."""
        return self._run("step", checkpoint, every)  # type: ignore[return-value]

    def record(self, **metrics: float) -> None:
        """Attach `metrics` to the current epoch. The pair gets those of the last epoch of each half.

        Raises:
            UsageError: there is no current epoch.
            TrainingError: a metric is NaN or infinite.
        """
        epoch = self._current
        if epoch is None:
            raise UsageError("There is no epoch to record for.", "Call record() in the loop over epochs().")
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} in {self._place}.",
                    "The run diverged; train with a lower learning rate, or a longer warm-up.",
                )
        if self.history and (self.history[-1].index, self.history[-1].half) == (epoch.index, epoch.half):
            values = {**self.history.pop().metrics, **values}
        self.history.append(EpochRecord(epoch.index, epoch.half, epoch.kind, values))

    def save_pair(
        self,
        path: str | Path,
        example_inputs: ExampleInputs,
        *,
        name: str | None = None,
        pipeline: str | None = None,
        seed: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        judged_output: str | None = None,
        batch_size: int | None = None,
        classes: Sequence[str] = (),
    ) -> Pair:
        """Write both halves as a pair: the folder `path`, which appears only when it is complete.

        Your model is not touched: the halves are exported from a copy of it, on the CPU.

        Args:
            example_inputs: the arguments of the model, one array or tensor an input, the batch as first axis; a dict of
                them is passed by keyword. Give real samples: runtimes are compared on the outputs for the first 64.
            name: the pair's name, of letters, digits, '.', '_' and '-'; derived from the folder's by default.
            pipeline: the text of the pipeline file that configured the run, where there was one.
            seed: the seed of the run, where there was one.
            input_names: names in the ONNX graph: the keys of a dict, else "input", or "input_0", "input_1", ...
            output_names: names in the ONNX graph. Outputs that a model returns by name (a dict, dataclass or named
                tuple) keep theirs, and this chooses among them; others are "logits", or "logits_0", "logits_1", ...
            judged_output: the output that accuracy is judged by, with one logit for each class. By default the only
                one, or that called "logits".
            batch_size: admits a network whose rows depend on each other: the pair is for batches of exactly so many.
            classes: the names of the classes, in the order of the logits. Data whose names are known, such as an image
                folder, are then refused unless they have the same.

        Raises:
            UsageError: the run is not complete, names don't fit, or the model can't be exported: it is no graph, or its
                outputs depend on more than the same rows of its inputs (random numbers, buffers that change, other
                rows).
            RuntimeUnavailable: onnx or onnxscript is not installed.
            OutputError: the folder can't be written.
            PairError: the trained weights make no sound pair.
        """
        if set(self._states) != {"sparse", "dense"}:
            where = f"it is in {self._place}" if self._current else "it has not begun"
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
            judged_output=judged_output,
            batch_size=batch_size,
            classes=classes,
        )

    def detach(self) -> None:
        """Remove the hooks. The weights stay as they are, but nothing holds them at zero any longer."""
        self._enforcement.detach()

    @property
    def resumed(self) -> bool:
        """Whether the run went on from a checkpoint."""
        return self._resumed

    @property
    def done(self) -> int:
        """The number of epochs (or steps) that are done, of the schedule's `total`."""
        before = sum(leg.phase.length for leg in self._legs[: self._leg])
        return before + (self._next - self._legs[self._leg].phase.start if self._next >= 0 else 0)

    @property
    def sparsity(self) -> float:
        """The share of the pattern's weights that are held at zero now, 0 to 1."""
        return self._enforcement.sparsity

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics recorded in the last epoch of each half. An earlier epoch had other weights than the pair."""
        last = self.schedule.length - 1
        return {epoch.half: dict(epoch.metrics) for epoch in self.history if epoch.index == last}

    # ------------------------------------------------------------------------------------------------ its legs

    def _run(self, unit: Unit, checkpoint: str | Path | None, every: int) -> Iterator[Epoch]:
        if self._current:
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
                self._current = kind(index, leg.kind, leg.half)
                yield self._current
                check_state(self._optimizer)  # state exists after the first step, long before it has to be reset
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
            self.collapsed = tuple(collapsed(masks))
            if self.collapsed:
                warnings.warn(self._collapse(leg.phase), TrainingWarning, stacklevel=3)
            self._enforcement.hold({name: ~mask for name, mask in masks.items()})
            for name, weight in self._averaged().items():
                weight.detach().masked_fill_(~masks[name], 0)
        elif leg.phase.start > 0:
            reset_momentum(self._optimizer)

    def _finish(self, leg: _Leg) -> None:
        """End a leg: dropped weights have to be zero, and are free from here on."""
        self._enforcement.require_zeros(self._enforcement.weights, self._place)
        if self._average is not None:
            self._enforcement.require_zeros(self._averaged(), self._place)
        if leg.half == "sparse":
            self.phases.append(self._phase_record(leg.phase))
        if leg.kind == "sparse":
            self._dropped_before = self._enforcement.dropped
            self._enforcement.free()
            self.collapsed = ()
        if leg.phase == self.schedule.last_dense:
            self._twin = copy.deepcopy(self._parts.state())
        if leg.phase == self.schedule.final:
            self._stash(leg.half)

    def _phase_record(self, phase: Phase) -> PhaseRecord:
        weights, dropped, dropped_before = self._enforcement.weights, self._enforcement.dropped, self._dropped_before
        nonzeros = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
        if not (dropped and dropped_before):
            return PhaseRecord(phase.kind, phase.start, phase.end, nonzeros)
        masks = [(dropped_before[name], dropped[name]) for name in weights]
        changed = sum(int((before ^ now).sum()) for before, now in masks)
        regrown = sum(int((before & ~now).sum()) for before, now in masks)
        total_before = sum(int(before.sum()) for before, _ in masks)
        total = sum(before.numel() for before, _ in masks)
        return PhaseRecord(phase.kind, phase.start, phase.end, nonzeros, changed / total, regrown / total_before)

    def _stash(self, half: Half) -> None:
        """Keep the weights of a half whose training is over."""
        self._require_finite(half)
        model = self._model if self._average is None else unwrapped(self._average.module)  # type: ignore[arg-type]
        self._states[half] = states.taken(model)

    def _collapse(self, phase: Phase) -> str:
        """What to say of the layers that lose all of their weights in a sparse phase."""
        what = f"{self.schedule.unit} {phase.start} to {phase.end - 1}"
        if phase == self.schedule.final:
            lasting = "so they will be in the sparse half, whose outputs don't depend on what these layers get"
        else:
            lasting = "they are free again in the next dense phase"
        return (
            f"Every weight of {', '.join(self.collapsed)} is zero from {what}: all are among the smallest; {lasting}. "
            "Lower the sparsity, exclude them, or choose scope 'uniform'; layer_collapse 'refuse' ends the run instead."
        )

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
        epoch = self._current
        if epoch is None:
            return "no epoch"
        return f"{self.schedule.unit} {epoch.index}, a {epoch.kind} one of the {epoch.half} half"

    # -------------------------------------------------------------------------------------------- its checkpoints

    def _save(self, path: Path) -> None:
        """Write the state of the run. Raises `TrainingError` if it is not finite: nobody should go on from that."""
        assert self._current is not None
        self._require_finite(self._current.half)
        first = not path.exists()
        state = {
            "identity": self._identity(),
            "leg": self._leg,
            "next": self._next,
            "dead": self._enforcement.dropped,
            "before": self._dropped_before,
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
        self._dropped_before = self._placed(state["before"])
        self.history = [EpochRecord(**epoch) for epoch in state["history"]]
        self.phases = [PhaseRecord(**phase) for phase in state["phases"]]
        self._twin, self._states = state["twin"], state["states"]
        self._parts.restore(state["parts"])
        self._enforcement.hold(self._placed(state["dead"]))
        self.collapsed = tuple(name for name, dropped in state["dead"].items() if dropped.all())
        self._resumed = True

    def _placed(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move masks to the devices of their weights."""
        return {name: mask.to(self._enforcement.weights[name].device) for name, mask in masks.items()}

    def _identity(self) -> dict[str, Any]:
        """The facts that a checkpoint must share with the run that goes on from it."""
        return {
            "schedule": f"{self.schedule.unit}s {[phase.length for phase in self.schedule.phases]}",
            "pattern": repr(self.pattern),
            "choice of weights": list(self._enforcement.weights),
            "model": {name: str(list(value.shape)) for name, value in self._model.named_parameters()},
            "optimizer": type(self._optimizer).__name__,
            "number of objects in `also`": len(self._parts.also),
        }


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch.compile and data parallelism, which rename its parameters."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
