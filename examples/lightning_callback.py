"""AC/DC in a Lightning Trainer: a callback, and a pair from it.

python examples/lightning_callback.py runs/lightning

Lightning's epochs are AC/DC's, those of the twin included: set `max_epochs` to `schedule.total`. Make an LR scheduler
for `schedule.length`, since AC/DC resets it for the twin. `current_epoch` and `global_step` are not reset: loggers show
the twin's epochs behind the sparse half's.

A run that was killed goes on from the callback's own `checkpoint`, by the same script, to the same bits.

These do not work:

- Lightning's checkpoints (`ckpt_path`), which know nothing of phases and masks;
- anything that ends a run early (EarlyStopping, `max_steps`, `max_time`), since there is no pair then;
- weights that another callback averages or swaps;
- several optimizers.

In "16-mixed" precision the GradScaler is not reset. Several processes were not tried.
"""

import sys
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acdc_export import ACDC, Pair, Schedule, Unstructured


class ACDCCallback(Callback):
    """Trains a LightningModule with AC/DC, and saves the pair: `pair` when `fit` is over.

    Args:
        schedule: when the network is sparse.
        pattern: which weights are kept while it is sparse.
        out: the folder that the pair is written to.
        example_inputs: arguments of the LightningModule, whose `forward` has to return the logits.
        checkpoint: a file for the state of the run. If it exists, the run goes on from it.
    """

    def __init__(self, schedule, pattern, out, example_inputs, checkpoint=None):
        self.schedule, self.pattern = schedule, pattern
        self.out, self.example_inputs, self.checkpoint = out, example_inputs, checkpoint

    def on_fit_start(self, trainer, module):
        if trainer.max_epochs != self.schedule.total:
            total = self.schedule.total
            raise ValueError(f"The schedule takes {total} epochs: give Trainer(max_epochs={total}).")
        if trainer.ckpt_path:
            raise ValueError("Lightning's checkpoints hold no masks: resume with ACDCCallback(checkpoint=...) instead.")
        (optimizer,) = trainer.optimizers
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]  # `also` takes any number
        self.acdc = ACDC(module, optimizer, schedule=self.schedule, pattern=self.pattern, also=schedulers)
        self.epochs = self.acdc.epochs(self.checkpoint)
        self.epoch = None

    def on_train_epoch_start(self, trainer, module):
        # By now Lightning has stepped the LR schedulers of the last epoch, and not yet shuffled the data of this one.
        # So the twin sees its data in the same order as the sparse half.
        begun, self.epoch = self.epoch is not None, next(self.epochs)
        if self.acdc.resumed and not begun:
            trainer.fit_loop.epoch_progress.increment_by(self.acdc.done)

    def on_train_epoch_end(self, trainer, module):
        self.acdc.record(**trainer.callback_metrics)

    def on_train_end(self, trainer, module):
        next(self.epochs, None)  # ends the last epoch, so that the twin is stored
        if trainer.is_global_zero:
            self.pair = self.acdc.save_pair(self.out, self.example_inputs)


class Digits(L.LightningModule):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, index):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)]


def main(out: str) -> Pair:
    L.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    training = DataLoader(TensorDataset(x[::2], y[::2]), batch_size=64, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(x[1::2], y[1::2]), batch_size=256)

    schedule = Schedule.alternating(warmup=2, sparse=1, dense=1, cycles=1, last_sparse=1, last_dense=2, final_sparse=3)
    callback = ACDCCallback(schedule, Unstructured(0.9, exclude=("network.0",)), out, (x[:64],), f"{out}.checkpoint")
    trainer = L.Trainer(
        max_epochs=schedule.total,
        callbacks=[callback],
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Digits(schedule.length), training, validation)
    Path(f"{out}.checkpoint").unlink()

    pair = callback.pair
    print(f"{pair.path}: {pair.record.pattern.achieved:.1%} of the pruned weights are zero")
    for half, metrics in pair.record.metrics.items():
        print(f"{half:6} half: accuracy {metrics['accuracy']:.1%}")
    return pair


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning")
