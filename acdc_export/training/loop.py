"""The training loop of the pipelines: one user of `ACDC` among others, for image classifiers whose training data
fit into memory. A loop of your own needs none of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data, models
from ..config import Pipeline, Training
from ..errors import TrainingError, UsageError
from ..pair import Pair
from ..progress import SILENT, Progress
from .acdc import ACDC, Epoch
from .pattern import Unstructured
from .schedule import Schedule
from .to_onnx import REFERENCE_ROWS

_READ = 1024  # rows read at a time


def train(pipeline: Pipeline, out: str | Path, progress: Progress = SILENT) -> Pair:
    """Train the pair of `pipeline`, and write it to the folder `out`.

    On a GPU where torch has one, and otherwise on the CPU; one machine gives the same pair for the same seed (on
    a GPU nearly so). Torch's random numbers are afterwards what they were before. The pair's metrics are those on
    the training split: the split that it is judged by is not read here.

    Raises:
        UsageError: a model, data, schedule or pattern that can't be used, or not together.
        TrainingError: a loss that is not finite.
        OutputError, PairError: see `pair.write`.
    """
    schedule = Schedule.alternating(**asdict(pipeline.schedule))
    pattern = Unstructured(pipeline.pattern.sparsity, pipeline.pattern.scope, pipeline.pattern.exclude)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs, labels = _tensors(data.load(pipeline.data.train))
    _check_images(inputs, pipeline.training)
    with torch.random.fork_rng():
        torch.manual_seed(pipeline.seed)
        model = models.build(pipeline.model.name, pipeline.model.arguments)
        _check_fit(pipeline, model, inputs, labels)
        model = model.to(device)
        acdc = _run(pipeline.training, schedule, pattern, model, inputs, labels, pipeline.name, progress)
        return acdc.save_pair(
            out,
            tuple(tensor[:REFERENCE_ROWS] for tensor in inputs.values()),
            name=pipeline.name,
            pipeline=pipeline.text or None,
            seed=pipeline.seed,
            input_names=list(inputs) if len(inputs) > 1 else None,
        )


def _run(
    settings: Training,
    schedule: Schedule,
    pattern: Unstructured,
    model: nn.Module,
    inputs: dict[str, Tensor],
    labels: Tensor,
    name: str,
    progress: Progress,
) -> ACDC:
    """Both halves, epoch for epoch."""
    optimizer = torch.optim.SGD(
        model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )

    def rate(epoch: int) -> float:
        if epoch < settings.warmup_epochs:
            return (epoch + 1) / settings.warmup_epochs
        done = (epoch - settings.warmup_epochs) / max(1, schedule.epochs - settings.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * done))

    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    acdc = ACDC(model, optimizer, lr_scheduler, schedule=schedule, pattern=pattern)
    with progress.task(f"Training {name}", schedule.all_epochs) as advance:
        for epoch in acdc.epochs():
            loss = _epoch(model, optimizer, inputs, labels, settings)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss} in epoch {epoch.index}, a {epoch.kind} one of the {epoch.half} half.",
                    "Lower learning_rate, or raise warmup_epochs, under [training].",
                )
            lr_scheduler.step()
            if epoch.index == schedule.epochs - 1:
                acdc.record(training_accuracy=_accuracy(model, inputs, labels), training_loss=loss)
            advance(1, detail=_detail(epoch, acdc.sparsity, loss))
    return acdc


def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Tensor], labels: Tensor, settings: Training
) -> float:
    """Train on every sample once, in random order, but for what fills no batch. Returns the mean loss."""
    device = next(model.parameters()).device
    size = min(settings.batch_size, len(labels))
    steps = len(labels) // size  # a last batch of a few samples would upset the batch norms
    order = torch.randperm(len(labels))
    model.train()
    total = torch.zeros((), device=device)
    for rows in order[: steps * size].split(size):  # type: ignore[no-untyped-call]
        batch = [_shifted(tensor[rows], settings.shift).to(device) for tensor in inputs.values()]
        loss = F.cross_entropy(model(*batch), labels[rows].to(device), label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
    return float(total) / steps


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> float:
    """The share of `labels` that the model gives, 0 to 1."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    for rows in torch.arange(len(labels)).split(_READ):  # type: ignore[no-untyped-call]
        guess = model(*(tensor[rows].to(device) for tensor in inputs.values())).argmax(1)
        right += int((guess.cpu() == labels[rows]).sum())
    return right / len(labels)


def _shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels along each axis, its border repeated. (N, C, H, W) as it came in."""
    if not most:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * most + 1, (2, count, 1))
    down, right = moves[0] + torch.arange(height), moves[1] + torch.arange(width)  # (N, H), (N, W)
    sample = torch.arange(count)
    moved = padded.permute(0, 2, 3, 1)[sample[:, None, None], down[:, :, None], right[:, None, :]]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _tensors(source: data.Data) -> tuple[dict[str, Tensor], Tensor]:
    """All of the data: its inputs by name (one is called "input"), and its labels."""
    batches = list(source.batches(_READ))
    named = [x if isinstance(x, dict) else {"input": x} for x, _ in batches]
    inputs = {name: torch.from_numpy(np.concatenate([x[name] for x in named])) for name in named[0]}
    return inputs, torch.from_numpy(np.concatenate([y for _, y in batches]))


def _check_images(inputs: dict[str, Tensor], settings: Training) -> None:
    for name, tensor in inputs.items():
        if settings.shift and (tensor.ndim != 4 or not tensor.is_floating_point()):
            raise UsageError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; only images "
                "(N, C, H, W) of floats can be shifted.",
                "Set shift = 0 under [training].",
            )


def _check_fit(pipeline: Pipeline, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> None:
    """The model takes these inputs, and has an output for each label."""
    try:
        model.eval()
        with torch.no_grad():
            logits = model(*(tensor[:2] for tensor in inputs.values()))
        shape = tuple(logits.shape)
    except Exception as error:  # whatever a user's network makes of them
        shapes = ", ".join(f"{name} {list(tensor.shape[1:])}" for name, tensor in inputs.items())
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"The model '{pipeline.model.name}' can't take '{pipeline.data.train}' ({shapes}): {reason}.",
            "Change its arguments under [model], or the data.",
        ) from error
    if len(shape) != 2 or shape[1] <= int(labels.max()):
        raise UsageError(
            f"The model '{pipeline.model.name}' gives {list(shape)} for 2 samples, but '{pipeline.data.train}' has "
            f"labels up to {int(labels.max())}.",
            "Let it give one logit for each class, (N, classes).",
        )


def _detail(epoch: Epoch, sparsity: float, loss: float) -> str:
    state = f"{sparsity:.0%} sparse" if epoch.kind == "sparse" else "dense"
    return f"{state}{', the twin' if epoch.half == 'dense' else ''}, loss {loss:.3f}"
