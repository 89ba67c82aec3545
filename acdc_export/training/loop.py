"""The training loop of the pipelines, for image classifiers. It only uses `ACDC`; your own loop needs none of it."""

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

from .. import config, data, models
from ..config import Pipeline, ScheduleTable, Training
from ..data import images
from ..errors import CheckpointError, TrainingError, UsageError
from ..pair import Pair
from ..progress import SILENT, Progress
from ..records.rehearsal import PrunedLayer, Rehearsal
from .acdc import ACDC, Epoch
from .loaders import BatchLoader, InMemory, Streamed
from .network import ROWS
from .pattern import Pattern, of_kind
from .schedule import Schedule

_REHEARSAL_ROWS = 8  # samples of a step of a rehearsal, at most
_REMEDY = "Lower learning_rate, or raise warmup_epochs, under [training]."


def train(pipeline: Pipeline, out: str | Path, progress: Progress = SILENT, *, anew: bool = False) -> Pair:
    """Train the pair of `pipeline`, and write it to the folder `out`.

    Training runs on a GPU where torch has one, and otherwise on the CPU. One machine gives the same pair for the same
    seed (on a GPU nearly so). Torch's random numbers are afterwards what they were before. The pair's metrics are those
    on the training split during training: the split that it is judged by is not read here.

    The state of the run is kept in `out`.checkpoint after each epoch, and removed when the pair is written. If that
    file exists already, the run goes on from it, unless it is to begin `anew`.

    Raises:
        UsageError: the model, data, schedule or pattern can't be used, or not together.
        CheckpointError: the checkpoint is of another pipeline.
        TrainingError: the loss is not finite.
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
        if loader.left_out and not settings.drop_last:
            progress.say("The last batch of an epoch would have a single sample; each epoch leaves out another one.")
        try:
            acdc, names = _train(pipeline, schedule, loader, progress, checkpoint)
            pair = _save(acdc, out, pipeline, loader, names)
        except KeyboardInterrupt:
            if checkpoint.exists():
                progress.say(f"The same command goes on from {checkpoint}.")
            raise
    checkpoint.unlink(missing_ok=True)
    return pair


def rehearse(pipeline: Pipeline, progress: Progress = SILENT) -> Rehearsal:
    """Take one step in each phase of a pipeline, and export the result into a folder that is removed again.

    Every layer gets the pattern's share by itself, where it is large enough. Before training, the magnitudes of a layer
    say no more than how it was initialised; ranked together, some layers would lose all of their weights.

    Raises what `train` would raise for model, schedule, pattern and export.
    """
    schedule = schedule_of(pipeline.schedule)
    settings = pipeline.training
    _check_length(settings, schedule)
    short = Schedule.of([1] * len(schedule.phases), "step")
    batch_size = min(_REHEARSAL_ROWS, settings.batch_size)
    steps: list[tuple[str, float]] = []
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(pipeline.seed)
        pipeline = replace(pipeline, pattern=_rehearsed(pipeline))
        loader = _loader(pipeline, rehearsal_rows=batch_size)
        acdc, names = _train(pipeline, short, loader, progress, None, steps)
        counts = _save(acdc, Path(folder) / "pair", pipeline, loader, names).record.pattern.layers
    layers = {name: PrunedLayer(count.zeros, count.total) for name, count in counts.items()}
    return Rehearsal(tuple(steps), batch_size, layers, acdc.left_dense)


def _rehearsed(pipeline: Pipeline) -> config.Pattern:
    """The pattern of a rehearsal: that of the pipeline, by layer where no layer is too small for it."""
    pattern = replace(pipeline.pattern, layer_collapse="warn")
    uniform = replace(pattern, scope="uniform")
    try:
        pattern_of(replace(pipeline, pattern=uniform)).select(
            models.build(pipeline.model.name, pipeline.model.arguments)
        )
    except UsageError:  # where it is not for the scope, training says the same
        return pattern
    return uniform


def problems(pipeline: Pipeline) -> list[str]:
    """List all that `train` would refuse of model, data, schedule and pattern without a look at the data, by key.

    This builds the network, and reads no data. Raises `RuntimeUnavailable` if the network comes from a package that is
    not installed.
    """
    messages = []

    def attempt(key: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except UsageError as error:
            messages.append(f"{key}: {error.message} {error.remedy}")

    for key, spec in (("data.train", pipeline.data.train), ("data.judge", pipeline.data.judge)):
        attempt(key, partial(data.recognise, spec))
    if schedule := attempt("schedule", partial(schedule_of, pipeline.schedule)):
        attempt("training.epochs", partial(_check_length, pipeline.training, schedule))
    pattern = attempt("pattern", partial(pattern_of, pipeline))
    with torch.random.fork_rng():
        model = attempt("model", partial(models.build, pipeline.model.name, pipeline.model.arguments))
    if pattern and model:
        attempt("pattern", partial(pattern.select, model))
    return messages


def _loader(pipeline: Pipeline, rehearsal_rows: int | None = None) -> BatchLoader:
    """The pipeline's training data. A rehearsal takes `rehearsal_rows` a step, and noise in place of image files."""
    spec, settings = pipeline.data.train, pipeline.training
    if spec.partition(":")[0] not in images.KINDS:
        return InMemory(data.load(spec), rehearsal_rows or settings.batch_size, settings.shift, settings.drop_last)
    if rehearsal_rows:
        return Streamed(images.generated(spec, rehearsal_rows))
    return Streamed(images.augmented(spec, settings.batch_size, settings.workers, settings.drop_last))


def schedule_of(table: ScheduleTable) -> Schedule:
    """The schedule that `[schedule]` describes. Raises `UsageError` for phases that are no schedule."""
    if table.published:
        return Schedule.published(table.published)
    if table.phases:
        return Schedule.of(table.phases, table.unit)
    return Schedule.alternating(**{key: getattr(table, key) for key in ScheduleTable.NUMBERS}, unit=table.unit)


def pattern_of(pipeline: Pipeline) -> Pattern:
    """The pattern that `[pattern]` describes. Raises `UsageError` for a kind or numbers that don't exist."""
    table = pipeline.pattern
    options: dict[str, Any] = {
        "exclude": table.exclude,
        "exclude_types": table.exclude_types,
        "exclude_below": table.exclude_below,
        "recurrent": table.recurrent,
        "layer_collapse": table.layer_collapse,
    }
    if table.overrides:
        options["overrides"] = table.overrides
    return of_kind(table.kind, table.sparsity, table.scope, **options)


def _check_length(settings: Training, schedule: Schedule) -> None:
    if settings.epochs is not None and settings.epochs != schedule.length:
        raise UsageError(
            f"The schedule takes {schedule.length} {schedule.unit}s, and epochs = {settings.epochs} under [training].",
            "Give a schedule as long as the run, or leave epochs out.",
        )


def _save(acdc: ACDC, out: str | Path, pipeline: Pipeline, loader: BatchLoader, names: tuple[str, ...]) -> Pair:
    inputs = loader.examples(ROWS)
    return acdc.save_pair(
        out,
        tuple(inputs.values()),
        name=pipeline.name,
        pipeline=pipeline.text or None,
        seed=pipeline.seed,
        input_names=list(inputs) if len(inputs) > 1 else None,
        classes=names,
    )


def _train(
    pipeline: Pipeline,
    schedule: Schedule,
    loader: BatchLoader,
    progress: Progress,
    checkpoint: Path | None,
    durations: list[tuple[str, float]] | None = None,
) -> tuple[ACDC, tuple[str, ...]]:
    """Train both halves, epoch for epoch (or step for step). `durations` gets the kind and the seconds of each.

    Returns the run, and the names of the classes for the pair.
    """
    settings = pipeline.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.build(pipeline.model.name, pipeline.model.arguments)
    names = _check_fit(pipeline, model, loader)
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
        also=[_TrainingConfiguration(pipeline, checkpoint), loader, scaler],
    )
    unfit = [f"{layer} ({reason})" for layer, reason in acdc.left_dense.items() if not reason.startswith("excluded")]
    if unfit:
        progress.say(f"Left dense: {'; '.join(unfit)}.")
    steps = 1 if schedule.unit == "step" else loader.steps
    epochs: Iterator[Epoch] = (
        acdc.steps(checkpoint, every=loader.steps) if schedule.unit == "step" else acdc.epochs(checkpoint)
    )
    trainer = _Trainer(model, optimizer, scaler, average, loader, settings)
    said: tuple[str, ...] = ()
    with progress.task(f"Training {pipeline.name}", schedule.total) as advance:
        for epoch in epochs:
            if acdc.collapsed and acdc.collapsed != said:
                lasting = "; so they will be in the pair" if epoch.index >= schedule.final.start else ""
                progress.say(
                    f"Every weight of {', '.join(acdc.collapsed)} is zero from {schedule.unit} {epoch.index} on: all "
                    f"are among the smallest{lasting}."
                )
            said = acdc.collapsed
            if acdc.resumed and not trainer.started:
                progress.say(f"Going on from {checkpoint}: {acdc.done} of {schedule.total} {schedule.unit}s are done.")
                advance(acdc.done)
            start = perf_counter()
            loss, accuracy = trainer.steps(steps)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss} in {schedule.unit} {epoch.index}, a {epoch.kind} one of the {epoch.half} "
                    "half.",
                    _REMEDY + (f" {checkpoint} is from before that." if checkpoint and checkpoint.exists() else ""),
                )
            lr_scheduler.step()
            last = epoch.index == schedule.length - 1
            if last and settings.reestimate_batch_norm:
                trainer.reestimate()
            if schedule.unit == "epoch" or last or (epoch.index + 1) % loader.steps == 0:
                acdc.record(training_loss=loss, training_accuracy=accuracy)
            if durations is not None:
                durations.append((epoch.kind if epoch.half == "sparse" else "twin", perf_counter() - start))
            advance(1, detail=_detail(epoch, acdc.sparsity, loss))
    return acdc, names


class _TrainingConfiguration:
    """Puts the pipeline's training configuration into checkpoints, and refuses those of another one."""

    def __init__(self, pipeline: Pipeline, checkpoint: Path | None) -> None:
        self._checkpoint = checkpoint
        self._text = repr((pipeline.model, pipeline.data.train, pipeline.training, pipeline.seed))

    def state_dict(self) -> dict[str, Any]:
        return {"said": self._text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["said"] != self._text:
            raise CheckpointError(
                f"{self._checkpoint} is of a run with another [model], [data], [training] or seed.",
                "Begin the run anew with --anew, or give it another folder with --runs.",
            )


@dataclass
class _Trainer:
    """Takes steps of gradient descent on the batches of `loader`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: swa_utils.AveragedModel | None
    loader: BatchLoader
    settings: Training
    started: bool = False

    def steps(self, count: int) -> tuple[float, float]:
        """Take `count` steps. Return the mean loss of a sample, and the training accuracy as a share, 0 to 1."""
        self.started = True
        device = next(self.model.parameters()).device
        self.model.train()
        loss_sum, correct, samples = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for _ in range(count):
            inputs, labels = self.loader.next()
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, enabled=self.scaler.is_enabled()):
                logits = self._forward([tensor.to(device, non_blocking=True) for tensor in inputs])
                loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
            self._step(loss)
            loss_sum += loss.detach() * len(labels)  # the last batch of an epoch may be smaller
            correct += (logits.detach().argmax(1) == labels).sum()
            samples += len(labels)
        return float(loss_sum) / samples, float(correct) / samples

    def _forward(self, inputs: list[Tensor]) -> Tensor:
        try:
            logits: Tensor = self.model(*inputs)
        except ValueError as error:  # batch norms refuse a single value in a channel
            if len(inputs[0]) > 1:
                raise
            raise UsageError(
                f"The network can't be trained on batches of one sample: {error}.",
                "Raise batch_size under [training], and give it two samples or more.",
            ) from error
        return logits

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
        """Estimate the batch norms' means and variances anew for the pair's weights, over an epoch of training data.

        A smaller last batch is left out: `update_bn` gives all batches the same weight.
        """
        model = self.model if self.average is None else self.average.module
        device = next(model.parameters()).device
        swa_utils.update_bn(self._whole_batches(), model, device)

    def _whole_batches(self) -> Iterator[Tensor]:
        """The first input of an epoch's batches that are as large as the largest so far."""
        largest = 0
        for _ in range(self.loader.steps):
            batch = self.loader.next()[0][0]
            if len(batch) >= largest:
                largest = len(batch)
                yield batch


def _rate(settings: Training, length: int, epoch: int) -> float:
    """The learning rate of an epoch (or step), as a share of the peak."""
    if epoch < settings.warmup_epochs:
        return (epoch + 1) / settings.warmup_epochs
    if settings.milestones:
        return 0.1 ** sum(epoch > milestone for milestone in settings.milestones)
    progress = (epoch - settings.warmup_epochs) / max(1, length - settings.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _check_fit(pipeline: Pipeline, model: nn.Module, loader: BatchLoader) -> tuple[str, ...]:
    """Check that the model takes the inputs, and has an output for each label. Raises `UsageError`.

    Returns the names of the classes; none where the model has other outputs than these.
    """
    inputs = loader.examples(2)
    try:
        model.eval()
        with torch.no_grad():
            logits = model(*inputs.values())
        shape = tuple(logits.shape)
    except Exception as error:  # a user's network can fail in any way
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
    if loader.listed and shape[1] != len(loader.names):
        raise UsageError(
            f"The model '{pipeline.model.name}' tells {shape[1]} classes apart, and '{pipeline.data.train}' has "
            f"{len(loader.names)}: nothing would say which outputs are theirs.",
            f"Let it give {len(loader.names)} logits (most models take `classes` or `num_classes` under [model]).",
        )
    return loader.names if shape[1] == len(loader.names) else ()


def _detail(epoch: Epoch, sparsity: float, loss: float) -> str:
    state = f"{sparsity:.0%} sparse" if epoch.kind == "sparse" else "dense"
    return f"{state}{', the twin' if epoch.half == 'dense' else ''}, loss {loss:.3f}"
