"""A pair from your own training loop: AC/DC attached to a model and an optimizer.

python examples/own_loop.py runs/mine
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acdc_export import ACDC, Pair, Schedule, Unstructured


def main(out: str) -> Pair:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    training, validation = TensorDataset(x[::2], y[::2]), (x[1::2], y[1::2])
    loader = DataLoader(training, batch_size=64, shuffle=True, drop_last=True)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = Schedule.alternating(warmup=3, sparse=2, dense=2, cycles=2, last_sparse=2, last_dense=4, final_sparse=6)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=schedule.length)

    acdc = ACDC(model, optimizer, lr_scheduler, schedule=schedule, pattern=Unstructured(0.9, exclude=("0",)))
    for epoch in acdc.epochs():  # of both halves: first the sparse one, then its dense twin
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        lr_scheduler.step()
        accuracy = evaluate(model, *validation)
        acdc.record(accuracy=accuracy)
        print(f"{epoch.half:6} half, epoch {epoch.index:2}, {epoch.kind:6}  accuracy {accuracy:.1%}")

    pair = acdc.save_pair(out, example_inputs=(x[:64],))
    print(f"{pair.path}: {pair.record.pattern.achieved:.1%} of the pruned weights are zero")
    return pair


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    return (model(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own-loop")
