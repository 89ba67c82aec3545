"""Kept weights move exactly as an optimizer over them alone would move them."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from acdc_export.training import ACDC, NM, Schedule, Unstructured

from .test_acdc import OPTIMIZERS, batches, network

SCHEDULE = Schedule.of([1, 2, 1, 1])
WEIGHTS = ["0.weight", "4.weight"]


class KeptAlone:
    """The same network without its dropped weights: each weight is scattered from a vector of the kept ones."""

    def __init__(self, model, optimizer, make):
        self.model = model
        self.kept = {name: dict(model.named_parameters())[name].detach() != 0 for name in WEIGHTS}
        self.parameters = {}
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            value = value[self.kept[name]] if name in self.kept else value
            self.parameters[name] = nn.Parameter(value.clone())
        self.optimizer = make(self.parameters.values())
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                shaped = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                value = value[self.kept[name]] if shaped and name in self.kept else value
                value = value.clone() if isinstance(value, torch.Tensor) else value
                self.optimizer.state[self.parameters[name]][key] = value

    def full(self):
        def scattered(name, value):
            if name not in self.kept:
                return value
            return torch.zeros(self.kept[name].shape).masked_scatter(self.kept[name], value)

        return {name: scattered(name, value) for name, value in self.parameters.items()}

    def step(self, x, y, clip):
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        loss = F.cross_entropy(torch.func.functional_call(self.model, {**self.full(), **buffers}, (x,)), y)
        self.optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_sparse_phase_is_training_of_the_kept_weights_alone(name, clip):
    make = OPTIMIZERS[name]
    model = network()
    optimizer = make(model.parameters())
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.7))
    steps = 0
    for epoch in acdc.epochs():
        # The kept weights keep the momentum of the dense phase before; the others have none.
        kept_alone = KeptAlone(model, optimizer, make) if epoch.index == 1 else None
        for x, y in batches(epoch.index):
            if epoch.index in (1, 2) and epoch.half == "sparse":
                if epoch.index == 1:
                    expected = kept_alone
                expected.step(x, y, clip)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if epoch.index in (1, 2) and epoch.half == "sparse":
                steps += 1
                for key, value in expected.full().items():
                    torch.testing.assert_close(dict(model.named_parameters())[key], value, rtol=1e-5, atol=1e-6)
    assert steps == 6


def test_a_step_that_a_scaler_skips_moves_nothing_and_an_infinity_among_the_dropped_skips_none():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.7), also=[scaler])
    for epoch in acdc.epochs():
        dropped = (model[4].weight == 0).clone()
        for x, y in batches(epoch.index):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if epoch.index == 1:
                assert not model[4].weight.grad[dropped].any()
                model[4].weight.grad[~dropped] = float("inf")
                before = [parameter.detach().clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            if epoch.index == 1:
                assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
            if epoch.kind == "sparse":
                assert not model[4].weight[dropped].any()


def test_what_a_loss_makes_infinite_only_among_the_dropped_reaches_no_optimizer():
    layer = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    acdc = ACDC(layer, optimizer, schedule=Schedule.of([1, 1]), pattern=NM(2, 4))
    for epoch in acdc.epochs():
        if epoch.kind == "sparse":
            dropped = layer.weight == 0
            scale = torch.ones(4, 4).masked_fill(dropped, float("inf"))
            (layer.weight * scale.nan_to_num(posinf=1e30) * 1e30).sum().backward()
            assert layer.weight.grad.isfinite().all()
            assert not layer.weight.grad[dropped].any()


def test_a_running_average_is_sparse_too_and_is_what_the_pair_holds(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.7), average=average)
    ends = {}
    for epoch in acdc.epochs():
        start = {name: value.clone() for name, value in average.module.named_parameters()}
        zero = {name: dict(model.named_parameters())[name] == 0 for name in WEIGHTS}
        if epoch.kind == "sparse":
            assert all(not start[name][zero[name]].any() for name in WEIGHTS)
        for x, y in batches(epoch.index):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
            if epoch.kind == "sparse":
                assert all(not average.module.get_parameter(name)[zero[name]].any() for name in WEIGHTS)
        ends[epoch.half] = {name: value.clone() for name, value in average.module.state_dict().items()}
        if epoch.half == "sparse" and epoch.index == 3:
            leaving = start  # what the twin's average starts from, but for what was dropped
    for half, state in ends.items():
        assert all(torch.equal(acdc._states[half][name], value) for name, value in state.items())
    assert (ends["dense"]["4.weight"] != 0).all()
    assert (leaving["4.weight"] == 0).any()
    pair = acdc.save_pair(tmp_path / "pair", torch.zeros(2, 1, 4, 4))
    assert pair.record.pattern.achieved >= 0.7


@pytest.mark.train
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler"),
                pytest.mark.filterwarnings("default"),
            ],
        ),
    ],
)
def test_compiled_models_are_masked_too(backend):
    torch.compiler.reset()
    model = network()
    compiled = torch.compile(model, backend=backend)
    optimizer = OPTIMIZERS["sgd"](compiled.parameters())
    acdc = ACDC(compiled, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.7))
    plain = network()
    plain_optimizer = OPTIMIZERS["sgd"](plain.parameters())
    expected = ACDC(plain, plain_optimizer, schedule=SCHEDULE, pattern=Unstructured(0.7))
    for epoch, _ in zip(acdc.epochs(), expected.epochs(), strict=True):
        for x, y in batches(epoch.index):
            for network_, chosen in ((compiled, optimizer), (plain, plain_optimizer)):
                chosen.zero_grad()
                F.cross_entropy(network_(x), y).backward()
                chosen.step()
            if epoch.kind == "sparse":
                assert torch.equal(model[4].weight == 0, plain[4].weight == 0)
                assert not model[4].weight.grad[model[4].weight == 0].any()
    for name, value in expected._states["sparse"].items():
        torch.testing.assert_close(acdc._states["sparse"][name], value)
