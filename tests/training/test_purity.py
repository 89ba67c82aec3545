"""What a network's outputs may depend on: the same rows of its inputs."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acdc_export.errors import UsageError
from acdc_export.pair import Pair

from .test_to_onnx import trained

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.between(self.body(x)))


class DropoutLeftOn(Base):
    def between(self, x):
        return F.dropout(x, 0.5)


class Noise(Base):
    def between(self, x):
        return x + 0.01 * torch.randn_like(x)


class NoisyLayer(nn.Module):
    def forward(self, x):
        return x * torch.rand(())


class NoiseInALayer(Base):
    def __init__(self):
        super().__init__()
        self.noise = NoisyLayer()

    def between(self, x):
        return self.noise(x)


class Drifting(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def between(self, x):
        self.scale *= 1.01
        return x * self.scale


class WithoutStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def between(self, x):
        return self.norm(x)


class MinusBatchMean(Base):
    def forward(self, x):
        logits = self.head(self.body(x).relu())
        return logits - logits.mean(0)


class SoftmaxOverTheBatch(Base):
    def between(self, x):
        return x.softmax(0)


class ByPlaceInTheBatch(Base):
    def between(self, x):
        return x * torch.arange(len(x))[:, None]


RANDOM = {
    DropoutLeftOn: r"an operation before head \(Linear\)",
    Noise: r"an operation before head \(Linear\)",
    NoiseInALayer: r"an operation in noise \(NoisyLayer\)",
    Drifting: "its forward changes the buffer scale",
}
BATCH = {
    WithoutStatistics: r"norm \(BatchNorm1d\) has no running statistics|for a batch of one",
    MinusBatchMean: r"an operation in the model itself \(MinusBatchMean\)",
    SoftmaxOverTheBatch: r"an operation before head",
    ByPlaceInTheBatch: r"an operation before head",
}


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_outputs_that_differ_in_a_second_run_are_refused_and_their_origin_is_named(kind, batch_size, tmp_path):
    acdc = trained(kind(), X)
    with pytest.raises(UsageError, match=f"other outputs for the same inputs: {RANDOM[kind]}"):
        acdc.save_pair(tmp_path / "pair", X, batch_size=batch_size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", BATCH)
def test_outputs_that_depend_on_other_rows_are_refused_and_their_origin_is_named(kind, tmp_path):
    acdc = trained(kind(), X)
    with pytest.raises(UsageError, match=f"depend on the batch that it is in: ({BATCH[kind]})"):
        acdc.save_pair(tmp_path / "pair", X)


@pytest.mark.parametrize("kind", BATCH)
def test_a_network_that_depends_on_its_batch_is_admitted_at_one_batch_size(kind, tmp_path):
    pair = trained(kind(), X).save_pair(tmp_path / "pair", X, batch_size=4)
    record = Pair.load(pair.path).record
    assert [spec.shape for spec in (*record.inputs, *record.outputs)] == [(4, 6), (4, 4)]
    assert record.batch_size == 4
    for half in pair.halves:
        session = onnxruntime.InferenceSession(pair.onnx(half))
        (logits,) = session.run(None, {"input": X[:4].numpy()})
        np.testing.assert_allclose(logits, pair.reference.outputs(half)["logits"], rtol=1e-3, atol=1e-4)
        assert session.get_inputs()[0].shape == [4, 6]


def test_fewer_rows_than_the_batch_are_refused(tmp_path):
    acdc = trained(MinusBatchMean(), X)
    with pytest.raises(UsageError, match="12 rows of example inputs, fewer than a batch of 32"):
        acdc.save_pair(tmp_path / "pair", X, batch_size=32)
    with pytest.raises(UsageError, match="batch_size is 0"):
        acdc.save_pair(tmp_path / "pair", X, batch_size=0)


class Counting(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def between(self, x):
        self.calls += 1
        return x


def test_a_buffer_that_changes_nothing_yet_is_said(tmp_path):
    acdc = trained(Counting(), X)
    with pytest.warns(UserWarning, match="changes the buffer calls in eval mode"):
        acdc.save_pair(tmp_path / "pair", X)


def test_honest_networks_pass_whatever_the_size_of_their_values(tmp_path):
    class Scaled(Base):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor
            self.norm = nn.BatchNorm1d(8)

        def between(self, x):
            return self.norm(x).relu() * self.factor

    for factor in (1e-6, 1, 1e6):
        model = Scaled(factor)
        optimizer_safe = trained(model, X) if factor == 1 else None
        if optimizer_safe is None:  # the factor is no matter of training
            model.factor = 1
            optimizer_safe = trained(model, X)
            model.factor = factor
        optimizer_safe.save_pair(tmp_path / f"pair-{factor}", X)
