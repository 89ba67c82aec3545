"""How accurate are the halves of AC/DC, beside other methods? Glyphs, at 90 and 98 % unstructured and 90 % block-4.

    python -m benchmarks.quality --minutes 60 --seeds 0 1 2      go on with the runs, for about an hour
    python -m benchmarks.quality                                 the tables of what is there

    dense                the network trained densely, and never pruned
    AC/DC sparse, twin   both halves of one run
    gradual              magnitude pruning by Zhu and Gupta's cubic schedule (2017), from the third epoch to the 7th
    one-shot             trained densely for 7 epochs, pruned once, and fine-tuned for 9

All take 16 epochs with the same optimizer, batches and rates. All but AC/DC then run once more, for as many epochs as
cost the training FLOPs of AC/DC's sparse half, as the paper counts them. Every run takes one core, and adds a line to
quality.jsonl. So the benchmark can be interrupted, and several seeds can run side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from acdc_export import config, data, models
from acdc_export.pair import Half
from acdc_export.present.progress import TerminalProgress
from acdc_export.training import ACDC, Schedule, flops, loop
from acdc_export.training.enforcement import Enforcement

RUNS = Path(__file__).parent / "quality.jsonl"
PIPELINES = ("glyphs-90", "glyphs-98", "glyphs-block4")
OTHERS = ("gradual", "one-shot")
RAMP = (2 / 16, 7 / 16)  # the share of a gradual run in which its sparsity rises: from, to
DENSE = 7 / 16  # the share of a one-shot run before it is pruned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to go on with runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    for seed in options.seeds:
        for method, pipeline in _methods():
            if time.monotonic() > end:
                break
            if (method, pipeline, seed) not in {(run["method"], run["pipeline"], run["seed"]) for run in read()}:
                start = time.monotonic()
                line = run(method, pipeline, seed)
                line |= {"method": method, "pipeline": pipeline, "seed": seed, "seconds": time.monotonic() - start}
                with RUNS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print_table()


def _methods() -> list[tuple[str, str]]:
    methods = ("acdc", *OTHERS, *(f"{method}, equal FLOPs" for method in ("dense", *OTHERS)))
    return [("dense", PIPELINES[0]), *((method, pipeline) for pipeline in PIPELINES for method in methods)]


def run(method: str, name: str, seed: int) -> dict[str, Any]:
    """Train by a method. Returns test accuracies, 0 to 1, the epochs, and the training FLOPs of a sample."""
    pipeline = config.load_pipeline(name)
    epochs = loop.schedule_of(pipeline.schedule).length
    if method.endswith("equal FLOPs"):
        method = method.partition(",")[0]
        epochs = _equal(method, name)
    torch.manual_seed(seed)
    training = _Run(pipeline, epochs)
    with TerminalProgress().task(f"{method}, {name}, seed {seed}", epochs) as advance:
        line = {"dense": training.dense, "acdc": training.acdc, "gradual": training.gradual}.get(
            method, training.one_shot
        )(advance)
    return {**line, "epochs": epochs}


class _Run:
    """One training run, by the pipelines' own trainer."""

    def __init__(self, pipeline: config.Pipeline, epochs: int) -> None:
        settings = pipeline.training
        self.pipeline, self.epochs = pipeline, epochs
        self.feed = loop._loader(pipeline)
        self.model = models.build(pipeline.model.name, pipeline.model.arguments)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        self.rates = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: loop._rate(settings, epochs, epoch)
        )
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.trainer = loop._Trainer(self.model, self.optimizer, scaler, None, self.feed, settings)
        self.pattern = loop.pattern_of(pipeline)
        examples = self.feed.examples(1).values()
        self.flops = flops.count(self.model, lambda: self.model(*examples), 1)

    def epoch(self, advance: Any) -> None:
        self.trainer.steps(self.feed.steps)
        self.rates.step()
        advance()

    def dense(self, advance: Any) -> dict[str, Any]:
        for _ in range(self.epochs):
            self.epoch(advance)
        return {"dense": accuracy(self.model), "flops": 3 * self.epochs * self.flops.total({})}

    def acdc(self, advance: Any) -> dict[str, Any]:
        return self._alternating(loop.schedule_of(self.pipeline.schedule), ("sparse", "dense"), advance)

    def one_shot(self, advance: Any) -> dict[str, Any]:
        dense = round(DENSE * self.epochs)
        return self._alternating(Schedule.of([dense, self.epochs - dense]), ("sparse",), advance)

    def gradual(self, advance: Any) -> dict[str, Any]:
        held = Enforcement(self.pattern.select(self.model).weights, self.optimizer)
        spent = 0.0
        for epoch in range(self.epochs):
            if sparsity := _cubic(epoch / self.epochs, self.pattern.sparsity):
                masks = replace(self.pattern, sparsity=sparsity).masks(held.weights)  # type: ignore[type-var]
                held.hold({name: ~mask for name, mask in masks.items()})
            self.epoch(advance)
            spent += 3 * self.flops.total({name: int(weight.count_nonzero()) for name, weight in held.weights.items()})
        held.detach()
        return {"sparse": accuracy(self.model), "flops": spent}

    def _alternating(self, schedule: Schedule, halves: tuple[Half, ...], advance: Any) -> dict[str, Any]:
        acdc = ACDC(self.model, self.optimizer, self.rates, schedule=schedule, pattern=self.pattern, also=[self.feed])
        for epoch in acdc.epochs():
            if epoch.half not in halves:
                break
            self.epoch(advance)
        acdc.detach()
        cost = flops.cost(self.flops, acdc.phases)
        line = {"flops": cost.training_sparse, "twin flops": cost.training_dense}
        for half in halves:
            self.model.load_state_dict(acdc._states[half])
            line["sparse" if half == "sparse" else "twin"] = accuracy(self.model)
        return line


def _cubic(progress: float, final: float) -> float:
    """Return Zhu and Gupta's sparsity after a share of a run, 0 to 1."""
    start, end = RAMP
    if progress < start:
        return 0.0
    return final * (1 - max(0.0, 1 - (progress - start) / (end - start)) ** 3)


def _equal(method: str, name: str) -> int:
    """Return how many epochs cost as much as AC/DC's sparse half, by the FLOPs of the run of 16."""
    runs = {(run["method"], run["pipeline"]): run for run in read()}
    ours, theirs = runs["acdc", name], runs[method, PIPELINES[0] if method == "dense" else name]
    return max(3, round(float(theirs["epochs"] * ours["flops"] / theirs["flops"])))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of the test split's labels that the network predicts, 0 to 1."""
    model.eval()
    right = count = 0
    for x, y in data.load("glyphs:test").batches(500):
        assert not isinstance(x, dict)
        right += int((model(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)).sum())
        count += len(y)
    return right / count


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def print_table() -> None:
    """Print mean and standard deviation over seeds, by pipeline and method."""
    runs = read()
    print(f"{'test accuracy, %':<40}{'mean':>8}{'spread':>8}{'seeds':>7}{'epochs':>8}{'FLOPs':>10}")
    methods = _methods()
    for pipeline in PIPELINES:
        print(pipeline)
        for method, trained in methods:
            chosen = [run for run in runs if (run["method"], run["pipeline"]) == (method, trained)]
            if trained == pipeline or method == "dense":  # the dense run is the same for all pipelines
                for half in ("sparse", "twin", "dense"):
                    _print_row(method, half, [run for run in chosen if half in run])


def _print_row(method: str, half: str, runs: list[dict[str, Any]]) -> None:
    if not runs:
        return
    values = [100 * run[half] for run in runs]
    spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    spent = np.mean([run["twin flops" if half == "twin" else "flops"] for run in runs])
    title = f"  AC/DC {half}" if method == "acdc" else f"  {method}"
    print(f"{title:<40}{np.mean(values):8.2f}{spread:8.2f}{len(values):7}{runs[0]['epochs']:8}{spent:10.3g}")


if __name__ == "__main__":
    main()
