"""The training loop of the pipelines: one user of `ACDC` among others, for image classifiers. A loop of your own needs
none of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import swa_utils

from .. import data, models
from ..config import Pipeline, ScheduleTable, Training
from ..data import images
from ..errors import CheckpointError, TrainingError, UsageError
from ..pair import Pair
from ..progress import SILENT, Progress
from ..records.rehearsal import PrunedLayer, Rehearsal
from .acdc import ACDC, Epoch
from .loaders import BatchLoader, InMemory, Streamed
from .pattern import Pattern, of_kind
from .schedule import Schedule
from .to_onnx import REFERENCE_ROWS

_REHEARSED = 8  # samples a step
_REMEDY = "Lower learning_rate, or raise warmup_epochs, under [training]."


def train(pipeline: Pipeline, out: str | Path, progress: Progress = SILENT, *, anew: bool = False) -> Pair:
    """Train the pair of `pipeline`, and write it to the folder `out`.

    On a GPU where torch has one, and otherwise on the CPU; one machine gives the same pair for the same seed (on
    a GPU nearly so). Torch's random numbers are afterwards what they were before. The pair's metrics are those on
    the training split, while it was trained on: the split that it is judged by is not read here.

    The state of the run is kept in `out`.checkpoint after each epoch, and removed when the pair is written. Where that
    file is there already, the run goes on from it, unless it is to begin `anew`.

    Raises:
        UsageError: a model, data, schedule or pattern that can't be used, or not together.
        CheckpointError: a checkpoint of another pipeline.
        TrainingError: a loss that is not finite.
        OutputError, PairError: see `pair.write`.
    """
    checkpoint = Path(out).with_name(f"{Path(out).name}.checkpoint")
    settings = pipeline.training
    schedule = schedule_of(pipeline.schedule)
    _check_length(settings, schedule)
    if anew:
        checkpoint.unlink(missing_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(pipeline.seed)
        loader = _loader(pipeline)
        try:
            acdc = _train(pipeline, schedule, loader, progress, checkpoint)
            pair = _save(acdc, out, pipeline, loader)
        except KeyboardInterrupt:
            if checkpoint.exists():
                progress.say(f"The same command goes on from {checkpoint}.")
            raise
    checkpoint.unlink(missing_ok=True)
    return pair


def rehearse(pipeline: Pipeline, progress: Progress = SILENT) -> Rehearsal:
    """Take one step in each phase of a pipeline, and export what comes of it into a folder that is removed again.

    Every layer gets the pattern's share by itself: before a network is trained, its layers' magnitudes say no more than
    how they were initialised, and ranked together some would lose all of their weights.

    Raises what `train` would raise of model, schedule, pattern and export.
    """
    schedule = schedule_of(pipeline.schedule)
    settings = pipeline.training
    _check_length(settings, schedule)
    pipeline = replace(pipeline, pattern=replace(pipeline.pattern, scope="uniform"))
    short = Schedule.of([1] * len(schedule.phases), "step")
    size = min(_REHEARSED, settings.batch_size)
    steps: list[tuple[str, float]] = []
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(pipeline.seed)
        loader = _loader(pipeline, rehearsed=size)
        acdc = _train(pipeline, short, loader, progress, None, steps)
        counts = _save(acdc, Path(folder) / "pair", pipeline, loader).record.pattern.layers
    layers = {name: PrunedLayer(count.zeros, count.total) for name, count in counts.items()}
    return Rehearsal(tuple(steps), size, layers, acdc.left_dense)


def problems(pipeline: Pipeline) -> list[str]:
    """What `train` would refuse of model, data, schedule and pattern without a look at the data: all of it, by key.

    Builds the network, and reads nothing. Raises `RuntimeUnavailable` where the network comes from a package that is
    not installed.
    """
    found = []

    def attempt(key: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except UsageError as error:
            found.append(f"{key}: {error.message} {error.remedy}")

    for key, spec in (("data.train", pipeline.data.train), ("data.judge", pipeline.data.judge)):
        attempt(key, partial(data.recognise, spec))
    if schedule := attempt("schedule", partial(schedule_of, pipeline.schedule)):
        attempt("training.epochs", partial(_check_length, pipeline.training, schedule))
    pattern = attempt("pattern", partial(pattern_of, pipeline))
    with torch.random.fork_rng():
        model = attempt("model", partial(models.build, pipeline.model.name, pipeline.model.arguments))
    if pattern and model:
        attempt("pattern", partial(pattern.select, model))
    return found


def _loader(pipeline: Pipeline, rehearsed: int | None = None) -> BatchLoader:
    """The pipeline's training data. A rehearsal takes so many samples a step, and noise in place of image files."""
    spec, settings = pipeline.data.train, pipeline.training
    if spec.partition(":")[0] not in images.KINDS:
        return InMemory(data.load(spec), rehearsed or settings.batch_size, settings.shift)
    if rehearsed:
        return Streamed(images.generated(spec, rehearsed))
    return Streamed(images.augmented(spec, settings.batch_size, settings.workers))


def schedule_of(table: ScheduleTable) -> Schedule:
    """The schedule that `[schedule]` says. Raises `UsageError` for phases that are none."""
    if table.published:
        return Schedule.published(table.published)
    if table.phases:
        return Schedule.of(table.phases, table.unit)
    return Schedule.alternating(**{key: getattr(table, key) for key in ScheduleTable.NUMBERS}, unit=table.unit)


def pattern_of(pipeline: Pipeline) -> Pattern:
    """The pattern that `[pattern]` says. Raises `UsageError`."""
    table = pipeline.pattern
    layers: dict[str, Any] = {
        "exclude": table.exclude,
        "exclude_types": table.exclude_types,
        "exclude_below": table.exclude_below,
    }
    if table.overrides:
        layers["overrides"] = table.overrides
    return of_kind(table.kind, table.sparsity, table.scope, **layers)


def _check_length(settings: Training, schedule: Schedule) -> None:
    if settings.epochs is not None and settings.epochs != schedule.length:
        raise UsageError(
            f"The schedule takes {schedule.length} {schedule.unit}s, and epochs = {settings.epochs} under [training].",
            "Give a schedule as long as the run, or leave epochs out.",
        )


def _save(acdc: ACDC, out: str | Path, pipeline: Pipeline, loader: BatchLoader) -> Pair:
    inputs = loader.examples(REFERENCE_ROWS)
    return acdc.save_pair(
        out,
        tuple(inputs.values()),
        name=pipeline.name,
        pipeline=pipeline.text or None,
        seed=pipeline.seed,
        input_names=list(inputs) if len(inputs) > 1 else None,
    )


def _train(
    pipeline: Pipeline,
    schedule: Schedule,
    loader: BatchLoader,
    progress: Progress,
    checkpoint: Path | None,
    taken: list[tuple[str, float]] | None = None,
) -> ACDC:
    """Both halves, epoch for epoch (or step for step). `taken` gets the kind and the seconds of each."""
    settings = pipeline.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.build(pipeline.model.name, pipeline.model.arguments)
    _check_fit(pipeline, model, loader)
    model = model.to(device)
    if schedule.unit == "step" and checkpoint and not loader.resumable:
        raise UsageError(
            f"{pipeline.data.train} is read as it is needed, and can't be resumed in the middle of an epoch.",
            "Give the schedule in epochs.",
        )
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, settings, schedule.length))
    average = None
    if settings.average is not None:
        average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(settings.average))  # type: ignore[no-untyped-call]
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp and device.type == "cuda")
    if settings.amp and not scaler.is_enabled():
        progress.say("amp = true is for GPUs; training in float32 here.")
    acdc = ACDC(
        model,
        optimizer,
        lr_scheduler,
        schedule=schedule,
        pattern=pattern_of(pipeline),
        average=average,
        also=[_Recipe(pipeline, checkpoint), loader, scaler],
    )
    unasked = [f"{layer} ({why})" for layer, why in acdc.left_dense.items() if not why.startswith("excluded")]
    if unasked:
        progress.say(f"Left dense: {'; '.join(unasked)}.")
    steps = 1 if schedule.unit == "step" else loader.steps
    turns: Iterator[Epoch] = (
        acdc.steps(checkpoint, every=loader.steps) if schedule.unit == "step" else acdc.epochs(checkpoint)
    )
    trainer = _Trainer(model, optimizer, scaler, average, loader, settings)
    with progress.task(f"Training {pipeline.name}", schedule.total) as advance:
        for turn in turns:
            if acdc.resumed and not trainer.begun:
                progress.say(f"Going on from {checkpoint}: {acdc.done} of {schedule.total} {schedule.unit}s are done.")
                advance(acdc.done)
            start = perf_counter()
            loss, accuracy = trainer.steps(steps)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss} in {schedule.unit} {turn.index}, a {turn.kind} one of the {turn.half} half.",
                    _REMEDY + (f" {checkpoint} is from before that." if checkpoint and checkpoint.exists() else ""),
                )
            lr_scheduler.step()
            last = turn.index == schedule.length - 1
            if last and settings.reestimate_batch_norm:
                trainer.reestimate()
            if schedule.unit == "epoch" or last or (turn.index + 1) % loader.steps == 0:
                acdc.record(training_loss=loss, training_accuracy=accuracy)
            if taken is not None:
                taken.append((turn.kind if turn.half == "sparse" else "twin", perf_counter() - start))
            advance(1, detail=_detail(turn, acdc.sparsity, loss))
    return acdc


class _Recipe:
    """Has a checkpoint know the pipeline that it is of."""

    def __init__(self, pipeline: Pipeline, checkpoint: Path | None) -> None:
        self._checkpoint = checkpoint
        self._said = repr((pipeline.model, pipeline.data.train, pipeline.training, pipeline.seed))

    def state_dict(self) -> dict[str, Any]:
        return {"said": self._said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["said"] != self._said:
            raise CheckpointError(
                f"{self._checkpoint} is of a run with another [model], [data], [training] or seed.",
                "Begin the run anew with --anew, or give it another folder with --runs.",
            )


@dataclass
class _Trainer:
    """Steps of gradient descent on what the loader gives."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: swa_utils.AveragedModel | None
    loader: BatchLoader
    settings: Training
    begun: bool = False

    def steps(self, count: int) -> tuple[float, float]:
        """Take so many steps. Returns the mean loss, and the share of labels that the network gave, 0 to 1."""
        self.begun = True
        device = next(self.model.parameters()).device
        self.model.train()
        loss_sum, right, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for _ in range(count):
            inputs, labels = self.loader.next()
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, enabled=self.scaler.is_enabled()):
                logits = self.model(*(tensor.to(device, non_blocking=True) for tensor in inputs))
                loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
            self._step(loss)
            loss_sum += loss.detach()
            right += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
        return float(loss_sum) / count, float(right) / seen

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def reestimate(self) -> None:
        """Batch norms' means and variances anew, over an epoch of training data, of the weights that are kept."""
        model = self.model if self.average is None else self.average.module
        device = next(model.parameters()).device
        swa_utils.update_bn((self.loader.next()[0][0] for _ in range(self.loader.steps)), model, device)


def _rate(settings: Training, length: int, epoch: int) -> float:
    """The learning rate of an epoch, as a share of the peak."""
    if epoch < settings.warmup_epochs:
        return (epoch + 1) / settings.warmup_epochs
    if settings.milestones:
        return 0.1 ** sum(epoch > milestone for milestone in settings.milestones)
    done = (epoch - settings.warmup_epochs) / max(1, length - settings.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * done))


def _check_fit(pipeline: Pipeline, model: nn.Module, loader: BatchLoader) -> None:
    """The model takes these inputs, and has an output for each label."""
    inputs = loader.examples(2)
    try:
        model.eval()
        with torch.no_grad():
            logits = model(*inputs.values())
        shape = tuple(logits.shape)
    except Exception as error:  # whatever a user's network makes of them
        shapes = ", ".join(f"{name} {list(tensor.shape[1:])}" for name, tensor in inputs.items())
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"The model '{pipeline.model.name}' can't take '{pipeline.data.train}' ({shapes}): {reason}.",
            "Change its arguments under [model], or the data.",
        ) from error
    if len(shape) != 2 or shape[1] < loader.classes:
        raise UsageError(
            f"The model '{pipeline.model.name}' gives {list(shape)} for 2 samples, but '{pipeline.data.train}' has "
            f"labels up to {loader.classes - 1}.",
            "Let it give one logit for each class, (N, classes).",
        )


def _detail(turn: Epoch, sparsity: float, loss: float) -> str:
    state = f"{sparsity:.0%} sparse" if turn.kind == "sparse" else "dense"
    return f"{state}{', the twin' if turn.half == 'dense' else ''}, loss {loss:.3f}"
