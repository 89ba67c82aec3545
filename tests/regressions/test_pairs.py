"""What others met when they exported their networks: the symptom stands at the top of each test."""

import numpy as np
import pytest
import torch
from torch import nn

from acdc_export import export, verify
from acdc_export.errors import UsageError
from acdc_export.inspection import inspect
from acdc_export.pair import Pair
from acdc_export.present import text
from acdc_export.training import ACDC, Schedule, Unstructured

SCHEDULE = Schedule.alternating(warmup=1, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)


def images(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """Returns what a layer hides first, and logits second; `of` makes the outputs from both."""

    def __init__(self, of):
        super().__init__()
        self.body, self.head, self.of = nn.Conv2d(1, 16, 3, bias=False), nn.Linear(16, 4, bias=False), of

    def forward(self, x):
        hidden = self.body(x).tanh().mean((2, 3))
        logits = self.head(hidden)
        return logits if self.training else self.of(hidden, logits)


def trained(of):
    """A finished run; the labels are what the twin says, so that it gets all of them right by its logits."""
    torch.manual_seed(0)
    model = Network(of)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.5))
    for _ in acdc.epochs():
        optimizer.zero_grad()
        model(images(16)).square().mean().backward()
        optimizer.step()
    x = images(120, seed=1)
    with torch.no_grad():
        labels = model.train()(x).argmax(1).numpy()
    return acdc, {"x": x.numpy(), "y": labels}


@pytest.mark.runtime
def test_the_logits_are_judged_and_not_what_comes_first(tmp_path):
    """Hugging Face, timm: a model returns a dict; its first entry is judged as if it held the classes."""
    acdc, arrays = trained(lambda hidden, logits: {"hidden": hidden, "logits": logits})
    np.savez(tmp_path / "data.npz", **arrays)
    pair = acdc.save_pair(tmp_path / "pair", images(32))
    options = {"data": str(tmp_path / "data.npz"), "out": tmp_path / "bundles", "batch_sizes": [4], "budget": 1.0}
    bundle = export(pair, "onnxruntime", gates=["parity <= 1e-3"], **options)
    assert (bundle.report.accuracy.output, bundle.report.accuracy.dense.value) == ("logits", 100.0)
    assert bundle.manifest.judged_output == "logits"
    assert "accuracy (logits)" in (bundle.path / "report.md").read_text()
    other = export(pair, "onnxruntime", gates=["parity <= 1e-3"], judged_output="hidden", **options)
    assert other.report.accuracy.output == "hidden"
    assert other.report.accuracy.dense.value < 100.0
    with pytest.raises(UsageError, match="--judged-output logit: .*did you mean 'logits'"):
        export(pair, "onnxruntime", judged_output="logit", **options)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", "fp32"), ("cpu", "fp32"), ("onnxruntime", "int8")])
def test_rows_that_depend_on_each_other_run_in_whole_batches(target, precision, tmp_path):
    """PyTorch: a batch norm without running statistics gives other outputs alone than in its batch."""
    acdc, arrays = trained(lambda hidden, logits: logits - 0.5 * logits.mean(0))
    np.savez(tmp_path / "data.npz", x=arrays["x"][:118], y=arrays["y"][:118])
    with pytest.raises(UsageError, match="depend on the batch that it is in"):
        acdc.save_pair(tmp_path / "pair", images(32))
    pair = acdc.save_pair(tmp_path / "pair", images(32), batch_size=6)
    options = {"data": str(tmp_path / "data.npz"), "out": tmp_path / "bundles", "budget": 1.0}
    if precision == "int8":
        np.savez(tmp_path / "train.npz", x=images(50, seed=2).numpy(), y=np.zeros(50, dtype=int))
        options["calibrate"] = str(tmp_path / "train.npz")
    bundle = export(pair, target, precision=precision, gates=["parity <= 1"], **options)
    report = bundle.report
    assert (report.gated_batch_size, {latency.batch_size for latency in report.latency}) == (6, {6})
    assert report.accuracy.samples == 114  # whole batches of 118
    assert all(parity.ok for halves in report.parity.values() for parity in halves.values())
    golden = [check.status for check in verify(bundle.path).checks if check.gate.startswith("golden outputs")]
    assert golden == ["pass"]
    with pytest.raises(UsageError, match="--batch-size 1: the pair .* is for batches of 6"):
        export(pair, target, precision=precision, batch_sizes=[1], **options)


def test_layers_that_are_not_counted_cost_no_pair(tmp_path):
    """PyTorch forum: FLOP counters fail on max pooling with indices, keyword calls and nested tensors."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2, return_indices=True)
            self.mean = nn.AdaptiveAvgPool2d(1)
            self.body, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            pooled, _ = self.pool(self.body(x))
            return self.head(self.mean(input=pooled).flatten(1))

    pair = finished(Odd(), images(8)).save_pair(tmp_path / "odd", images(8))
    cost = pair.record.history.cost
    assert cost.dense == 2 * 9 * 8 * 64 + 8 * 64 + 8 * 16 * 4 + 8 * 16 + 2 * 8 * 4 + 4
    assert pair.record.history.cost_unknown is None


def test_an_unknown_cost_is_unknown_and_said(tmp_path):
    """fvcore, ptflops: layers that a counter doesn't know count as nothing."""

    class Upsampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(1, 4, 2, 2)
            self.body, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.body(self.up(x)).relu().mean((2, 3)))

    pair = finished(Upsampling(), images(8)).save_pair(tmp_path / "up", images(8))
    history = Pair.load(pair.path).record.history
    assert history.cost is None
    assert history.cost_unknown == "up (ConvTranspose2d) multiplies weights in a way of its own"
    shown = text(inspect(pair.path))
    assert f"FLOPs for one sample are not known: {history.cost_unknown}." in " ".join(shown.split())


def finished(model, x):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.5))
    for _ in acdc.epochs():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return acdc
