"""When does alternating help? Linear regression with a planted sparse solution, so that the answer is known.

python examples/sparse_regression.py runs/sparse-regression.svg

y = X w* + noise, and 10 of w*'s 200 entries are not zero. Neighbouring columns of X correlate, which makes the problem
ill-conditioned: steps have to be small, and the largest weights on the way are not those of w*. Every method gets the
same number of steps of gradient descent, of the same size, and ends with 10 weights:

- AC/DC: dense and sparse phases in turns.
- Iterative hard thresholding: all but the 10 largest weights are set to zero after every step.
- Dense training, and pruning at the end.
- Dense training, pruning once, and training the 10 that are left: AC/DC with a single dense and a single sparse phase.

The table shows the share of w*'s entries that a method finds, and the distance to w* relative to its length: mean and
standard deviation over the seeds.
"""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import nn

from acdc_export import ACDC, Schedule, Unstructured

FEATURES, NONZEROS, NOISE, STEPS, SEEDS = 200, 10, 0.1, 200, 10
PATTERN = Unstructured(1 - NONZEROS / FEATURES)
ALTERNATING = Schedule.of([25] * 8, "step")
ONCE = Schedule.of([130, 70], "step")


@dataclass(frozen=True)
class Problem:
    x: torch.Tensor
    y: torch.Tensor
    planted: torch.Tensor
    rate: float  # of steps: the largest that surely goes downhill, 1 / the largest curvature

    @classmethod
    def make(cls, seed: int, samples: int, correlation: float) -> "Problem":
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, FEATURES, generator=random)
        for column in range(1, FEATURES):
            x[:, column] = correlation * x[:, column - 1] + (1 - correlation**2) ** 0.5 * x[:, column]
        planted = torch.zeros(FEATURES)
        chosen = torch.randperm(FEATURES, generator=random)[:NONZEROS]
        signs = torch.randint(0, 2, (NONZEROS,), generator=random) * 2 - 1
        planted[chosen] = signs * (0.5 + torch.rand(NONZEROS, generator=random))
        y = x @ planted + NOISE * torch.randn(samples, generator=random)
        return cls(x, y, planted, samples / float(torch.linalg.matrix_norm(x, 2)) ** 2)

    def model(self) -> tuple[nn.Linear, torch.optim.Optimizer]:
        model = nn.Linear(FEATURES, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model, torch.optim.SGD(model.parameters(), lr=self.rate)

    def step(self, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss = 0.5 * F.mse_loss(model(self.x)[:, 0], self.y)
        loss.backward()
        optimizer.step()

    def distance(self, model: nn.Linear) -> float:
        return float((model.weight[0].detach() - self.planted).norm() / self.planted.norm())

    def recovered(self, model: nn.Linear) -> float:
        return int(((model.weight[0] != 0) & (self.planted != 0)).sum()) / NONZEROS


# Each method trains a model and yields it after every step.


def acdc(problem: Problem, schedule: Schedule = ALTERNATING):
    model, optimizer = problem.model()
    steps = ACDC(model, optimizer, schedule=schedule, pattern=PATTERN).steps()
    for _ in islice(steps, schedule.length):  # without the twin's own steps
        problem.step(model, optimizer)
        yield model


def thresholding(problem: Problem):
    model, optimizer = problem.model()
    for _ in range(STEPS):
        problem.step(model, optimizer)
        prune(model)
        yield model


def pruned_at_the_end(problem: Problem):
    model, optimizer = problem.model()
    for step in range(STEPS):
        problem.step(model, optimizer)
        if step == STEPS - 1:
            prune(model)
        yield model


def pruned_and_trained(problem: Problem):
    return acdc(problem, ONCE)


@torch.no_grad()
def prune(model: nn.Linear) -> None:
    magnitudes = model.weight.abs()
    model.weight.masked_fill_(magnitudes < magnitudes.flatten().topk(NONZEROS).values[-1], 0)


METHODS = {
    "AC/DC": acdc,
    "iterative hard thresholding": thresholding,
    "dense, pruned at the end": pruned_at_the_end,
    "dense, pruned once, trained on": pruned_and_trained,
}
PROBLEMS = {  # samples, and how much neighbours correlate
    "100 samples, correlation 0.7": (100, 0.7),
    "400 samples, correlation 0.9": (400, 0.9),
    "400 samples, no correlation": (400, 0.0),
}


@dataclass
class Runs:
    """The results of a method on a problem, by seed; distances by seed and step."""

    recovered: list[float]
    distances: list[list[float]]

    @property
    def distance(self) -> list[float]:
        return [curve[-1] for curve in self.distances]


def measure(samples: int, correlation: float, seeds: int) -> dict[str, Runs]:
    runs = {name: Runs([], []) for name in METHODS}
    for seed in range(seeds):
        problem = Problem.make(seed, samples, correlation)
        for name, method in METHODS.items():
            curve = []
            for model in method(problem):
                curve.append(problem.distance(model))
            runs[name].distances.append(curve)
            runs[name].recovered.append(problem.recovered(model))
    return runs


def table(runs: dict[str, Runs]) -> str:
    rows = [f"{'':32}{'found':>14}{'distance':>18}"]
    for name, run in runs.items():
        recovered, distance = ([mean(values), stdev(values)] for values in (run.recovered, run.distance))
        rows.append(f"{name:32}{recovered[0]:8.0%} ± {recovered[1]:3.0%}{distance[0]:10.3f} ± {distance[1]:.3f}")
    return "\n".join(rows)


def draw(results: dict[str, dict[str, Runs]], out: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (title, runs) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for phase in ALTERNATING.phases[1::2]:
            axes.axvspan(phase.start, phase.end, color="#dbe9f6", linewidth=0)
        for name, run in runs.items():
            axes.plot(range(1, STEPS + 1), torch.tensor(run.distances).mean(0), label=name)
        axes.set(title=title, xlabel="step (shaded: AC/DC is sparse)", yscale="log", xlim=(0, STEPS))
    figure.axes[0].set_ylabel("distance to w*, mean over seeds")
    figure.axes[0].legend(fontsize="small", loc="lower left")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main(out: str | None, seeds: int = SEEDS) -> dict[str, dict[str, Runs]]:
    results = {}
    for title, (samples, correlation) in PROBLEMS.items():
        results[title] = measure(samples, correlation, seeds)
        print(f"{title}\n{table(results[title])}\n", flush=True)
    if out:
        draw(results, out)
        print(out)
    return results


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
