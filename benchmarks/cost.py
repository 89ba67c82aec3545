"""How much AC/DC adds to a training step, and how long choosing the weights takes.

Four loops over copies of the same network take one step each in turns, in an order that is drawn anew: the plain loop,
AC/DC in a dense and in a sparse phase, and masking as the paper's own code does it. That code multiplies weights before
the forward pass, gradients as they come, and weights again four times after the step.
"""

from __future__ import annotations

import copy
import random
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from acdc_export import ACDC, Schedule, Unstructured, models
from acdc_export.training.topk import keep_largest

from .networks import resnet50

Step = Callable[[], None]
PATTERN = Unstructured(0.9, "uniform")  # global: some layers of an untrained network would lose all weights
WARM = 2  # steps of each loop before anything counts
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet-20, 128 images of 32x32": (lambda: models.build("resnet_cifar", {}), (128, 3, 32, 32), 60),
    "ResNet-50, 8 images of 224x224": (resnet50, (8, 3, 224, 224), 30),
}  # network, batch, rounds


def main() -> dict[str, Any]:
    steps = {name: _steps(name, *case) for name, case in CASES.items()}
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # a new process, whose memory has had no other peak
        return {"steps": steps, "selection": fresh.submit(_selection).result()}


def _steps(title: str, make: Callable[[], nn.Module], shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Return seconds of a step, and their ratio to the plain loop's: median and 95 % interval over rounds."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    y = torch.randint(0, 10, shape[:1])
    loops = {
        "plain": _plain(copy.deepcopy(model), x, y),
        "AC/DC, dense phase": _acdc(copy.deepcopy(model), x, y, [10**6, 1]),
        "AC/DC, sparse phase": _acdc(copy.deepcopy(model), x, y, [1, 10**6]),
        "masking as in the paper's code": _authors(copy.deepcopy(model), x, y),
    }
    taken: dict[str, list[float]] = {name: [] for name in loops}
    draw = random.Random(0)
    for number in range(WARM + rounds):
        for name in draw.sample(list(loops), len(loops)):
            start = perf_counter()
            loops[name]()
            if number >= WARM:
                taken[name].append(perf_counter() - start)
    rows = {}
    print(f"{title + ', ' + str(rounds) + ' steps each':<54}{'seconds':>9}   times the plain loop's")
    for name, seconds in taken.items():
        logs = np.log(np.array(seconds) / np.array(taken["plain"]))
        resampled = np.random.default_rng(0).choice(logs, (2000, rounds))
        low, high = (float(value) for value in np.exp(np.percentile(np.median(resampled, axis=1), (2.5, 97.5))))
        median, ratio = float(np.median(seconds)), float(np.exp(np.median(logs)))
        rows[name] = {"seconds": median, "ratio": ratio, "interval": [low, high]}
        print(f"  {name:<52}{median:9.3f}   {ratio:.3f} [{low:.3f}, {high:.3f}]")
    alone = _alone(model)
    share = alone / float(np.median(taken["plain"]))
    print(f"  {'what AC/DC does in a sparse step, by itself':<52}{alone:9.4f}   {share:.4f}")
    return {"rounds": rounds, "batch": shape[0], "loops": rows, "alone": {"seconds": alone, "share": share}}


def _alone(model: nn.Module) -> float:
    """Return the seconds that masking every gradient and setting every dropped weight to zero takes, median of 20."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    acdc = ACDC(model, optimizer, schedule=Schedule.of([1, 1], "step"), pattern=PATTERN)
    steps = acdc.steps()
    next(steps), next(steps)
    held = acdc._enforcement
    gradients = {name: torch.randn_like(weight) for name, weight in held.weights.items()}
    taken = []
    for _ in range(20):
        start = perf_counter()
        for name, gradient in gradients.items():
            held.weights[name].grad = gradient
            held._mask_gradient(name, held.weights[name])
        held._zero()
        taken.append(perf_counter() - start)
    return float(np.median(taken))


def _plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _acdc(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lengths: list[int]) -> Step:
    """A loop with AC/DC. It is in the first phase of `lengths` if that is long, otherwise in the second."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    acdc = ACDC(model, optimizer, schedule=Schedule.of(lengths, "step"), pattern=PATTERN)
    steps = acdc.steps()

    def step() -> None:
        next(steps)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _authors(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    weights = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    masks = {name: mask.float() for name, mask in PATTERN.masks(weights).items()}

    def multiply() -> None:
        for name, weight in weights.items():
            weight.data *= masks[name]

    for name, weight in weights.items():
        weight.register_hook(lambda gradient, name=name: gradient * masks[name])  # type: ignore[no-untyped-call]

    def step() -> None:
        multiply()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for _ in range(4):
            multiply()

    return step


def _selection() -> dict[str, Any]:
    """Time the global selection of ResNet-50's weights beside `torch.kthvalue`, and measure its memory."""
    torch.manual_seed(0)
    weights = dict(Unstructured(0.9).select(resnet50()).weights)
    total = sum(weight.numel() for weight in weights.values())
    zeros = round(0.9 * total)
    keep_largest({"warm": torch.randn(10)}, 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masks = keep_largest(weights, zeros)
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert sum(int((~mask).sum()) for mask in masks.values()) == zeros
    seconds: dict[str, list[float]] = {"ours": [], "torch.kthvalue of all weights": []}
    for _ in range(5):
        start = perf_counter()
        keep_largest(weights, zeros)
        seconds["ours"].append(perf_counter() - start)
        start = perf_counter()
        magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
        threshold = torch.kthvalue(magnitudes, zeros).values
        _ = {name: weight.detach().abs() > threshold for name, weight in weights.items()}
        seconds["torch.kthvalue of all weights"].append(perf_counter() - start)
    print(f"selection among {total / 1e6:.1f} million weights")
    for name, times in seconds.items():
        print(f"  {name:<52}{np.median(times):9.3f} s")
    beyond = extra - total  # a mask takes a byte for each weight
    print(f"  memory at its peak, beyond the weights and the masks: {beyond / (4 * total):.2f} of the weights'")
    return {
        "weights": total,
        "seconds": {name: float(np.median(times)) for name, times in seconds.items()},
        "extra_bytes": beyond,
    }
