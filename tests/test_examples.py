"""The examples as they stand: each ends with what it promises. That of a loop of one's own is tested beside ours."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import acdc_export
from acdc_export import Schedule, Unstructured, export
from acdc_export.errors import UsageError
from acdc_export.pair import Pair

from .test_workflow import quick_target

ROOT = Path(acdc_export.__file__).parents[1]


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def needs(package: str) -> Callable[[Any], Any]:
    """Marks a test of a framework, whose warnings are its own."""
    missing = find_spec(package) is None
    marks = [
        pytest.mark.frameworks,
        pytest.mark.filterwarnings("default"),
        pytest.mark.skipif(missing, reason=f"{package} is not installed here; `make test-extended` has it"),
    ]

    def mark(test: Any) -> Any:
        for each in marks:
            test = each(test)
        return test

    return mark


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and lose much where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sound(path: Path, sparsity: float) -> Pair:
    """The pair, after a look at what is in it: exact zeros, and graphs that give the logits of PyTorch."""
    pair = Pair.load(path)
    weights = {half: load_file(path / f"{half}.safetensors") for half in ("sparse", "dense")}
    layers = pair.record.pattern.layers
    total = sum(layer.total for layer in layers.values())
    zeros = {half: sum(int((weights[half][name] == 0).sum()) for name in layers) for half in weights}
    assert zeros["sparse"] == math.ceil(round(sparsity * total, 6))
    assert zeros["dense"] < 0.05 * total  # a weight that never sees a gradient stays where the sparse phase left it
    for half, logits in (("sparse", pair.reference.sparse), ("dense", pair.reference.dense)):
        session = onnxruntime.InferenceSession(pair.onnx(half))
        (given,) = session.run(None, pair.reference.inputs)
        np.testing.assert_allclose(given, logits["logits"], rtol=1e-3, atol=1e-4)
    assert {epoch.half for epoch in pair.record.history.epochs} == {"sparse", "dense"}
    return pair


# ------------------------------------------------------------------------------------------------------- lightning


@needs("lightning")
def test_lightning(tmp_path: Path) -> None:
    example("lightning_callback")["main"](str(tmp_path / "mine"))
    record = sound(tmp_path / "mine", 0.9).record
    assert min(record.metrics[half]["accuracy"] for half in ("sparse", "dense")) > 0.9
    assert [epoch.half for epoch in record.history.epochs] == ["sparse"] * 10 + ["dense"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


SCHEDULE = Schedule.of([2, 1, 1, 2])  # six epochs, and two of the twin


def fit(out: Path, seed: int = 0, checkpoint: Path | None = None, callbacks: tuple[Any, ...] = (), **changes: Any):
    """A run of Lightning that takes a second, with whatever draws random numbers; what each epoch was like."""
    import lightning

    epochs: list[tuple[float, list[list[float]]]] = []  # its learning rate, and the first number of each sample

    class Small(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))

        def forward(self, x):
            return self.network(x)

        def training_step(self, batch, index):
            if index == 0:
                epochs.append((self.optimizers().param_groups[0]["lr"], []))
            epochs[-1][1].append(batch[0][:, 0].tolist())
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]

    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 8, generator=random), torch.randint(0, 3, (40,), generator=random)
    lightning.seed_everything(seed)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    callback = example("lightning_callback")["ACDCCallback"](SCHEDULE, Unstructured(0.5), out, (x,), checkpoint)
    options: dict[str, Any] = {"max_epochs": SCHEDULE.total, "accelerator": "cpu", "devices": 1, "logger": False}
    options |= {"enable_checkpointing": False, "enable_progress_bar": False, **changes}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = lightning.Trainer(callbacks=[callback, *callbacks], **options)
    trainer.fit(Small(), loader, ckpt_path=ckpt_path)
    return epochs


@needs("lightning")
def test_lightning_takes_the_rate_and_the_order_of_the_data_back_for_the_twin(tmp_path: Path) -> None:
    epochs = fit(tmp_path / "pair")
    assert [rate for rate, _ in epochs] == pytest.approx([0.1 * 0.5**index for index in (0, 1, 2, 3, 4, 5, 4, 5)])
    assert epochs[6:] == epochs[4:6]
    assert all(one[1] != two[1] for one, two in pairwise(epochs[:6]))
    record = sound(tmp_path / "pair", 0.5).record
    assert all("loss" in epoch.metrics for epoch in record.history.epochs)


@needs("lightning")
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_lightning_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    import lightning

    class Killer(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.current_epoch == stop:
                raise RuntimeError("killed")

    fit(tmp_path / "whole")
    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "pair", checkpoint=checkpoint, callbacks=(Killer(),))
    assert len(fit(tmp_path / "pair", seed=1, checkpoint=checkpoint)) == SCHEDULE.total - stop
    for half in ("sparse", "dense"):
        one, two = (load_file(tmp_path / name / f"{half}.safetensors") for name in ("whole", "pair"))
        assert all(np.array_equal(one[name], two[name]) for name in one)


@needs("lightning")
def test_lightning_is_refused_what_makes_no_pair(tmp_path: Path) -> None:
    import lightning

    class Stopper(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    with pytest.raises(ValueError, match=r"takes 8 epochs: give Trainer\(max_epochs=8\)"):
        fit(tmp_path / "pair", max_epochs=6)
    with pytest.raises(UsageError, match="not complete: it is in epoch 1"):
        fit(tmp_path / "pair", callbacks=(Stopper(),))
    saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "one", every_n_epochs=8)
    fit(tmp_path / "pair", callbacks=(saver,), enable_checkpointing=True)
    with pytest.raises(ValueError, match="hold no masks"):
        fit(tmp_path / "other", ckpt_path=tmp_path / "one.ckpt")
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------------------------------------------- transformers


@needs("transformers")
def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = example("transformers_callback")
    found["main"](str(tmp_path / "mine"))
    pair = sound(tmp_path / "mine", 0.8)
    assert min(pair.record.metrics[half]["eval_accuracy"] for half in ("sparse", "dense")) > 0.9
    assert [spec.name for spec in pair.record.inputs] == ["input_ids", "attention_mask"]
    ends = [phase.end - 1 for phase in pair.record.history.phases]
    assert [epoch.index for epoch in pair.record.history.epochs] == [*ends, ends[-1]]  # and the twin's

    rows = found["sentences"](100, seed=2)
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(tmp_path / "test.npz", **arrays)
    target = quick_target(tmp_path / "targets" / "onnxruntime", "onnxruntime")
    report = export(pair, target, data=str(tmp_path / "test.npz"), out=tmp_path / "bundles").report
    assert report.accuracy.sparse.value > 90
    assert all(half.ok for halves in report.parity.values() for half in halves.values())


def train(tmp_path: Path, **changes: Any) -> list[tuple[int, float, float]]:
    """A run of Transformers that takes seconds: at each step its index, the learning rate, and the share of zeros."""
    import transformers

    found = example("transformers_callback")
    rows = found["sentences"](64, seed=0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config)
    schedule = Schedule.of([4, 3, 3, 5], "step")
    examples = {name: np.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    callback = found["ACDCCallback"](schedule, Unstructured(0.5), tmp_path / "pair", examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    lr_scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, schedule.length)
    steps = []

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            steps.append((callback.step.index, optimizer.param_groups[0]["lr"], callback.acdc.sparsity))

    options = {"max_steps": schedule.total, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, **{**options, **changes})
    transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=found["accuracy"],
        optimizers=(optimizer, lr_scheduler),
        callbacks=[callback, Watch()],
    ).train()
    return steps


@needs("transformers")
@pytest.mark.parametrize("accumulated", [1, 3])
def test_transformers_takes_the_rate_back_for_the_twin(tmp_path: Path, accumulated: int) -> None:
    steps = train(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=accumulated)
    assert [step[0] for step in steps] == [*range(15), *range(10, 15)]
    assert [step[1] for step in steps] == pytest.approx([0.1 * (15 - index) / 15 for index, _, _ in steps])
    assert [step[2] > 0 for step in steps] == [False] * 4 + [True] * 3 + [False] * 3 + [True] * 5 + [False] * 5
    sound(tmp_path / "pair", 0.5)


@needs("transformers")
def test_transformers_is_refused_what_makes_no_pair(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes 20 steps: give TrainingArguments\(max_steps=20\)"):
        train(tmp_path, max_steps=15)
    saving = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5, "eval_steps": 5}
    with pytest.raises(ValueError, match="ends with the weights of its last one"):
        train(tmp_path, load_best_model_at_end=True, **saving)
    assert not (tmp_path / "pair").exists()


# -------------------------------------------------------------------------------------------------- sparse regression


def rows(text: str) -> dict[str, dict[str, list[float]]]:
    """The tables that the example prints, by title and method: found (percent), its spread, distance, its spread."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in text.splitlines():
        if re.match(r"\d+ samples, ", line):
            found[line] = {}
        elif numbers := re.search(r"(\d+)% ± +(\d+)% +([\d.]+) ± ([\d.]+)$", line):
            found[list(found)[-1]][line[:32].strip()] = [float(number) for number in numbers.groups()]
    return found


def test_sparse_regression_on_two_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("sparse_regression")
    runs = found["measure"](100, 0.7, 2)
    assert {len(curve) for run in runs.values() for curve in run.distances} == {200}
    assert max(runs["AC/DC"].distance) < min(runs["iterative hard thresholding"].distance)
    assert min(runs["AC/DC"].recovered) >= 0.9
    if find_spec("matplotlib"):
        found["draw"]({"one": runs, "two": runs}, str(tmp_path / "new" / "picture.svg"))
        assert "<svg" in (tmp_path / "new" / "picture.svg").read_text()


@pytest.mark.slow
def test_sparse_regression_comes_out_as_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    example("sparse_regression")["main"](None)
    measured = rows(capsys.readouterr().out)
    told = rows((ROOT / "docs" / "training.md").read_text())
    assert [(title, *table) for title, table in told.items()] == [(title, *table) for title, table in measured.items()]
    for title, table in measured.items():  # another processor sums in another order
        for method, numbers in table.items():
            np.testing.assert_allclose(numbers[:2], told[title][method][:2], atol=4, err_msg=f"{title}: {method}")
            np.testing.assert_allclose(numbers[2:], told[title][method][2:], atol=0.05, err_msg=f"{title}: {method}")

    few, many, white = measured.values()
    (acdc, thresholding, pruned, trained) = ([*few][index] for index in range(4))
    assert few[acdc][0] > few[trained][0] > few[thresholding][0]
    assert few[acdc][2] < few[trained][2] < min(few[thresholding][2], few[pruned][2])
    assert many[thresholding][0] < many[acdc][0] < min(many[pruned][0], many[trained][0])  # where AC/DC doesn't win
    assert many[trained][2] < many[pruned][2] < many[acdc][2] < many[thresholding][2]
    assert all(numbers[0] == 100 for numbers in white.values())
