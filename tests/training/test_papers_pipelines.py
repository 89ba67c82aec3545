"""The pipelines of the paper say what the authors' code does (IST-DASLab/ACDC, configs/neurips and its run scripts)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acdc_export import config, models, resources
from acdc_export.data import images
from acdc_export.training import loop

IMAGENET = {
    "batch_size": 256,
    "learning_rate": 0.256,
    "momentum": 0.875,
    "weight_decay": 3.051757813e-5,
    "warmup_epochs": 5,
    "milestones": (),
    "nesterov": False,
    "amp": True,
}
CIFAR100 = {
    "batch_size": 128,
    "learning_rate": 0.08,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_epochs": 0,
    "milestones": (75, 115, 155),
    "nesterov": True,
    "amp": False,
}
CIFAR10 = {**CIFAR100, "learning_rate": 0.1, "milestones": (65, 125, 185), "nesterov": False}

# The phases of "imagenet-100", as (epoch, kind) where they begin; the others likewise.
PRUNED = {
    "imagenet-100": ([*range(10, 71, 10), 85], [*range(15, 66, 10), 75], 100),
    "cifar-freq20": ([10, 50, 90, 130, 170], [30, 70, 110, 150], 200),
}

# Number of layers that are pruned, their sparsity, and the scope.
PAPER = {
    "resnet50-imagenet-80": (IMAGENET, "imagenet-100", 54, 0.8, "global"),
    "resnet50-imagenet-90": (IMAGENET, "imagenet-100", 54, 0.9, "global"),
    "resnet50-imagenet-95": (IMAGENET, "imagenet-100", 54, 0.95, "global"),
    "resnet50-imagenet-98": (IMAGENET, "imagenet-100", 54, 0.98, "global"),
    "resnet50-imagenet-90-uniform": (IMAGENET, "imagenet-100", 52, 0.9, "uniform"),
    "resnet50-imagenet-95-uniform": (IMAGENET, "imagenet-100", 52, 0.95, "uniform"),
    "resnet50-imagenet-2to4": (IMAGENET, "imagenet-100", 53, None, "global"),  # theirs prunes the first layer too
    "mobilenet-imagenet-75": (IMAGENET, "imagenet-100", 28, 0.75, "global"),
    "mobilenet-imagenet-90": (IMAGENET, "imagenet-100", 28, 0.9, "global"),
    "wideresnet-cifar100-90": (CIFAR100, "cifar-freq20", 29, 0.9, "global"),
    "resnet20-cifar10-50": (CIFAR10, "cifar-freq20", 22, 0.5, "global"),
    "resnet20-cifar10-75": (CIFAR10, "cifar-freq20", 20, 0.75, "global"),
    "resnet20-cifar10-90": (CIFAR10, "cifar-freq20", 20, 0.9, "global"),
    "resnet20-cifar10-95": (CIFAR10, "cifar-freq20", 20, 0.95, "global"),
}


def test_all_pipelines_of_the_paper_are_looked_at() -> None:
    assert {name for name in resources.names("pipelines") if "imagenet" in name or "cifar" in name} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_its_numbers_are_the_papers(name: str) -> None:
    training, schedule, _, sparsity, scope = PAPER[name]
    pipeline = config.load_pipeline(name)
    assert {key: getattr(pipeline.training, key) for key in training} == training
    assert (pipeline.pattern.sparsity, pipeline.pattern.scope) == (sparsity, scope)
    assert pipeline.schedule.published == schedule
    prune, restore, length = PRUNED[schedule]
    phases = loop.schedule_of(pipeline.schedule).phases
    assert [phase.start for phase in phases if phase.kind == "sparse"] == prune
    assert [phase.start for phase in phases if phase.kind == "dense"] == [0, *restore]
    assert phases[-1].end == length


@pytest.mark.parametrize("name", PAPER)
def test_its_epochs_have_as_many_steps_as_the_papers(name: str) -> None:
    settings = config.load_pipeline(name).training
    samples, steps = (1_281_167, 5_005) if "imagenet" in name else (50_000, 391)
    assert images.steps_of(samples, settings.batch_size, settings.drop_last) == steps


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.vision if "resnet50" in name else ()) for name in PAPER]
)
def test_it_prunes_the_papers_layers(name: str) -> None:
    pipeline = config.load_pipeline(name)
    if ":" in pipeline.model.name:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    with torch.device("meta"):
        model = models.build(pipeline.model.name, pipeline.model.arguments)
    selection = loop.pattern_of(pipeline).select(model)
    assert len(selection.weights) == PAPER[name][2]
    if name.startswith("resnet20") and PAPER[name][2] == 20:
        assert set(selection.dense) == {"layer2.0.downsample.0", "layer3.0.downsample.0"}


def test_the_rates_are_theirs() -> None:
    """`CosineLR` with a warm-up of 5 epochs, and `ExponentialLR` stepped at the end of epochs 75, 115 and 155."""
    cosine = [(e + 1) / 5 if e < 5 else 0.5 * (1 + np.cos(np.pi * (e - 5) / 95)) for e in range(100)]
    steps = [0.1 ** sum(e >= first for first in (76, 116, 156)) for e in range(200)]
    for name, rates in (("resnet50-imagenet-90", cosine), ("wideresnet-cifar100-90", steps)):
        settings = config.load_pipeline(name).training
        np.testing.assert_allclose([loop._rate(settings, len(rates), e) for e in range(len(rates))], rates)


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"),
    [
        ("imagefolder", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ],
)
def test_images_are_normalised_as_theirs(
    kind: str, mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> None:
    assert (images.KINDS[kind].mean, images.KINDS[kind].deviation) == (mean, deviation)
