"""AC/DC in the Trainer of Hugging Face Transformers: a callback, and a pair from it.

python examples/transformers_callback.py runs/transformers

The Trainer counts in steps, and so does the schedule: set `max_steps` to `schedule.total`, the twin's steps included.
Give the Trainer an LR scheduler made for `schedule.length`, as below. Its own would be made for `max_steps`, and AC/DC
would reset it for the twin before its end. The network is evaluated at the end of each phase.

Embeddings stay dense; linear layers and convolutions are pruned. The exported graph takes any number of rows, of the
length that `example_inputs` have.

These do not work:

- the Trainer's checkpoints (`resume_from_checkpoint`), which know nothing of phases and masks;
- `load_best_model_at_end`;
- anything that ends a run early (EarlyStoppingCallback), since there is no pair then;
- FSDP and DeepSpeed.

The twin is trained on the batches that come next, and not once more on those of the sparse half's last phase. With
`fp16` the GradScaler is not reset. Several processes were not tried.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

from acdc_export import ACDC, Pair, Schedule, Unstructured


class Logits(nn.Module):
    """A classifier of Transformers in the form that runtimes take: tensors in, logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class ACDCCallback(TrainerCallback):
    """Trains a Trainer's model with AC/DC, and saves the pair: `pair` when `train` is over.

    Args:
        schedule: when the network is sparse, in steps.
        pattern: which weights are kept while it is sparse. Layer names begin with "model.", as in `export`'s module.
        out: the folder that the pair is written to.
        example_inputs: arguments of the exported module, by name.
        export: makes the module to export from the Trainer's model, and shares its weights.
    """

    def __init__(self, schedule, pattern, out, example_inputs, export=Logits):
        self.schedule, self.pattern = schedule, pattern
        self.out, self.example_inputs, self.export = out, example_inputs, export
        self.step = None

    def on_train_begin(self, args, state, control, model, optimizer, lr_scheduler, **kwargs):
        if state.max_steps != self.schedule.total:
            total = self.schedule.total
            raise ValueError(f"The schedule takes {total} steps: give TrainingArguments(max_steps={total}).")
        if state.global_step or args.load_best_model_at_end:
            raise ValueError("A run of AC/DC begins at its first step, and ends with the weights of its last one.")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside Accelerate's wrapper
        self.acdc = ACDC(self.export(model), optimizer, lr_scheduler, schedule=self.schedule, pattern=self.pattern)
        self.steps = self.acdc.steps()

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = next(self.steps)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate |= self.step.index + 1 == self.schedule.at(self.step.index).end

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if self.step:  # no evaluation before the first step
            self.acdc.record(**{name: metrics[name] for name in metrics if name.endswith(("_loss", "_accuracy"))})

    def on_train_end(self, args, state, control, **kwargs):
        next(self.steps, None)  # ends the last step, so that the twin is stored
        if state.is_world_process_zero:
            names, values = zip(*self.example_inputs.items(), strict=True)
            self.pair = self.acdc.save_pair(self.out, values, input_names=names)


def sentences(count: int, seed: int, length: int = 12, words: int = 40) -> list[dict]:
    """Sentences of random words and lengths. The question: which of words 1 and 2 comes first?"""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        used = random.integers(6, length + 1)
        ids = np.zeros(length, dtype=np.int64)
        ids[:used] = random.integers(3, words, used)
        first, second = sorted(random.choice(used, 2, replace=False))
        label = int(random.integers(2))
        ids[first], ids[second] = (1, 2) if label else (2, 1)
        rows.append({"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "labels": label})
    return rows


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main(out: str) -> Pair:
    set_seed(0)
    training, validation = sentences(2000, seed=0), sentences(500, seed=1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=12,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)

    schedule = Schedule.of([120, 30, 30, 30, 60, 90], "step")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, 20, schedule.length)
    examples = {name: np.stack([row[name] for row in validation[:64]]) for name in ("input_ids", "attention_mask")}
    callback = ACDCCallback(schedule, Unstructured(0.8, exclude=("model.classifier",)), out, examples)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(Path(out).parent),
            max_steps=schedule.total,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=training,
        eval_dataset=validation,
        compute_metrics=accuracy,
        optimizers=(optimizer, lr_scheduler),
        callbacks=[callback],
    )
    trainer.train()

    pair = callback.pair
    print(f"{pair.path}: {pair.record.pattern.achieved:.1%} of the pruned weights are zero")
    for half, metrics in pair.record.metrics.items():
        print(f"{half:6} half: accuracy {metrics['eval_accuracy']:.1%}")
    return pair


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/transformers")
