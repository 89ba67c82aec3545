import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acdc_export.errors import TrainingError, UsageError
from acdc_export.training import ACDC, Epoch, Schedule, Unstructured

SCHEDULE = Schedule.alternating(warmup=1, sparse=1, dense=2, cycles=1, last_sparse=1, last_dense=2, final_sparse=2)
PATTERN = Unstructured(0.7)
STEPS = 3  # batches an epoch

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, 1e-2),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-2, momentum=0.9, centered=True),
    "single tensor": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, foreach=False),
}


def network(seed=0):
    torch.manual_seed(seed)
    # A bias before BatchNorm has no gradient but rounding errors, of which some optimizers make whole steps.
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        yield torch.randn(8, 1, 4, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def attach(model, optimizer=None, lr_scheduler=None, pattern=PATTERN):
    optimizer = optimizer or OPTIMIZERS["sgd"](model.parameters())
    return ACDC(model, optimizer, lr_scheduler, schedule=SCHEDULE, pattern=pattern), optimizer


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def copied(state):
    return {name: value.clone() for name, value in state.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def test_epochs_run_the_schedule_and_then_the_twins_own():
    model = network()
    acdc, _ = attach(model)
    assert list(acdc.epochs()) == [
        Epoch(0, "dense", "sparse"),
        Epoch(1, "sparse", "sparse"),
        Epoch(2, "dense", "sparse"),
        Epoch(3, "dense", "sparse"),
        Epoch(4, "sparse", "sparse"),
        Epoch(5, "dense", "sparse"),
        Epoch(6, "dense", "sparse"),
        Epoch(7, "sparse", "sparse"),
        Epoch(8, "sparse", "sparse"),
        Epoch(7, "dense", "dense"),
        Epoch(8, "dense", "dense"),
    ]


class Reference:
    """Implements AC/DC a second time, from the paper, with plain tensors and SGD written out."""

    def __init__(self, model, rate=0.1, momentum=0.9, decay=1e-2):
        self.model, self.rate, self.momentum, self.decay = model, rate, momentum, decay
        self.buffers, self.masks = {}, {}

    def prune(self, names):
        parameters = dict(self.model.named_parameters())
        magnitudes = np.concatenate([parameters[name].detach().abs().numpy().ravel() for name in names])
        keep = np.ones(len(magnitudes), dtype=bool)
        keep[np.argsort(magnitudes, kind="stable")[: math.ceil(0.7 * len(magnitudes))]] = False
        ends = np.cumsum([parameters[name].numel() for name in names])
        for name, part in zip(names, np.split(keep, ends), strict=False):
            self.masks[name] = torch.from_numpy(part).view_as(parameters[name])
            parameters[name].data[~self.masks[name]] = 0

    def restore(self):
        self.masks, self.buffers = {}, {}

    def step(self, x, y):
        parameters = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(F.cross_entropy(self.model(x), y), list(parameters.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(parameters.items(), gradients, strict=True):
                mask = self.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
                gradient = torch.where(mask, gradient, 0) + self.decay * weight
                if name in self.buffers:
                    gradient = self.momentum * self.buffers[name] + gradient
                self.buffers[name] = gradient
                weight -= self.rate * gradient
                weight[~mask] = 0


def test_both_halves_are_those_of_a_second_implementation():
    model, expected = network(), Reference(network())
    acdc, optimizer = attach(model)
    for epoch in acdc.epochs():
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
    weights = ["0.weight", "4.weight"]
    for phase in SCHEDULE.phases:
        if phase.kind == "sparse":
            expected.prune(weights)
        else:
            expected.restore()
        if phase == SCHEDULE.final:
            break
        for index in range(phase.start, phase.end):
            for x, y in batches(index):
                expected.step(x, y)
        if phase == SCHEDULE.last_dense:
            twin, buffers = copied(expected.model.state_dict()), dict(expected.buffers)
    final = range(SCHEDULE.final.start, SCHEDULE.final.end)
    for index in final:
        for x, y in batches(index):
            expected.step(x, y)
    for name, value in acdc._states["sparse"].items():
        torch.testing.assert_close(value, expected.model.state_dict()[name], rtol=1e-5, atol=1e-6)

    expected.model.load_state_dict(twin)
    expected.masks, expected.buffers = {}, buffers
    for index in final:
        for x, y in batches(index):
            expected.step(x, y)
    for name, value in acdc._states["dense"].items():
        torch.testing.assert_close(value, expected.model.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, model.state_dict()[name])  # the model is left as the dense half


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_exactly_after_every_step(name):
    model = network()
    weights = [model[0].weight, model[4].weight]
    total = sum(weight.numel() for weight in weights)
    acdc, optimizer = attach(model, OPTIMIZERS[name](model.parameters()))
    for epoch in acdc.epochs():
        chosen = [weight == 0 for weight in weights]
        if epoch.kind == "sparse":  # before its first forward pass
            assert sum(int(zero.sum()) for zero in chosen) == math.ceil(0.7 * total)
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
            zero = [weight == 0 for weight in weights]
            if epoch.kind == "sparse":
                assert sum(int(part.sum()) for part in zero) == math.ceil(0.7 * total)
                assert all(torch.equal(part, first) for part, first in zip(zero, chosen, strict=True))
            else:
                assert sum(int(part.sum()) for part in zero) < math.ceil(0.7 * total)  # they are free


def test_clipping_and_accumulation_see_masked_gradients():
    model = network()
    acdc, optimizer = attach(model)
    for epoch in acdc.epochs():
        dropped = [(weight, (weight == 0).clone()) for weight in (model[0].weight, model[4].weight)]
        optimizer.zero_grad(set_to_none=False)
        for x, y in batches(epoch.index):  # accumulated over the epoch's batches
            F.cross_entropy(model(x), y).backward()
            for weight, zero in dropped:
                if epoch.kind == "sparse":
                    assert zero.any()
                    assert not weight.grad[zero].any()
                assert weight.grad[~zero].any()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        kept = [weight.grad[~zero] for weight, zero in dropped] if epoch.kind == "sparse" else []
        others = [model[1].weight.grad, model[1].bias.grad, model[4].bias.grad]
        if epoch.kind == "sparse":
            expected = 1e-3 / norm  # after clipping, the gradients that are not masked have the norm 1e-3
            assert expected < 1
            clipped = torch.cat([gradient.flatten() for gradient in kept + others]).norm()
            torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)
        optimizer.step()
        for weight, zero in dropped:
            assert not weight[zero].any() or epoch.kind == "dense"


def test_gradients_gathered_before_a_sparse_phase_are_masked_too():
    model = network()
    acdc, _ = attach(model)
    epochs = acdc.epochs()
    next(epochs)
    for x, y in batches(0):
        F.cross_entropy(model(x), y).backward()  # and no step: a loop that accumulates over the boundary
    next(epochs)
    assert (model[4].weight == 0).any()
    assert not model[4].weight.grad[model[4].weight == 0].any()


def test_a_nan_that_is_masked_does_not_stay():
    model = network()
    acdc, optimizer = attach(model)
    for epoch in acdc.epochs():
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        if epoch.kind == "sparse":
            dropped = model[4].weight == 0
            with torch.no_grad():
                model[4].weight[dropped] = float("nan")
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            assert not model[4].weight[dropped].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_is_really_zero_when_a_dense_phase_begins(name):
    model = network()
    acdc, optimizer = attach(model, OPTIMIZERS[name](model.parameters()))
    before, resets = None, 0
    for epoch in acdc.epochs():
        if epoch.index in (2, 5) and epoch.half == "sparse":
            assert len(optimizer.state) == len(list(model.parameters()))  # batch norms and biases as well
            for state in optimizer.state.values():
                for key, value in state.items():
                    fresh = torch.full_like(torch.as_tensor(value), 1 if key == "mu_product" else 0)
                    assert torch.equal(torch.as_tensor(value), fresh), key
            resets += 1
        elif before is not None and epoch.half == "sparse":  # and at no other time, above all not when pruning
            for parameter, state in optimizer.state.items():
                assert_same(
                    {key: torch.as_tensor(value) for key, value in state.items()},
                    {key: torch.as_tensor(value) for key, value in before[parameter].items()},
                )
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        optimizer.zero_grad()  # to None: no parameter has a gradient when the reset is due
        assert all(parameter.grad is None for parameter in model.parameters())
        before = {
            parameter: {key: torch.as_tensor(value).clone() for key, value in state.items()}
            for parameter, state in optimizer.state.items()
        }
        assert any(value.any() for state in before.values() for value in state.values())
    assert resets == 2


def test_the_twin_starts_from_the_end_of_the_last_dense_phase():
    class Network(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Network(*network())
    optimizer = OPTIMIZERS["adam"](model.parameters())
    lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    acdc, _ = attach(model, optimizer, lr_scheduler)

    def everything():
        state = {**copied(model.state_dict()), "calls": model.calls.clone(), "random": torch.get_rng_state()}
        for index, kept in enumerate(optimizer.state.values()):
            state |= {f"{index}.{key}": torch.as_tensor(value).clone() for key, value in kept.items()}
        state["rate"] = torch.tensor(optimizer.param_groups[0]["lr"])
        state["scheduler"] = torch.tensor(lr_scheduler.last_epoch)
        return state

    start, rates, dice = None, {}, {}
    for epoch in acdc.epochs():
        if epoch.half == "dense" and epoch.index == SCHEDULE.final.start:
            assert_same(everything(), start)
            assert all(parameter.grad is None for parameter in model.parameters())
        dice[epoch] = torch.rand(3)
        rates[epoch] = optimizer.param_groups[0]["lr"]
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        lr_scheduler.step()
        if epoch.index == SCHEDULE.last_dense.end - 1:
            start = everything()
    for index in (7, 8):
        sparse, dense = Epoch(index, "sparse", "sparse"), Epoch(index, "dense", "dense")
        assert rates[sparse] == rates[dense] == pytest.approx(1e-2 * 0.5**index)
        assert torch.equal(dice[sparse], dice[dense])  # the same data in the same order, to a loop that draws it so


def test_batch_norms_and_rates_carry_over_between_phases():
    model = network()
    acdc, optimizer = attach(model)
    before = None
    for epoch in acdc.epochs():
        if before and epoch.half == "sparse":
            others = {name: value for name, value in model.state_dict().items() if name.startswith("1.")}
            assert_same(others, {name: before[name] for name in others})
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        before = copied(model.state_dict())


def test_metrics_are_those_of_the_last_epoch_of_each_half():
    model = network()
    acdc, _ = attach(model)
    with pytest.raises(UsageError, match="no epoch"):
        acdc.record(accuracy=1)
    for count, epoch in enumerate(acdc.epochs()):
        acdc.record(accuracy=0.01 * count)
        acdc.record(loss=epoch.index)
    assert acdc.metrics == {"sparse": {"accuracy": 0.08, "loss": 8.0}, "dense": {"accuracy": 0.1, "loss": 8.0}}
    assert len(acdc.history) == 11


def test_a_metric_that_is_not_finite_ends_the_run():
    acdc, _ = attach(network())
    next(acdc.epochs())
    with pytest.raises(TrainingError, match="loss is nan in epoch 0, a dense one"):
        acdc.record(loss=float("nan"))


def test_weights_that_diverged_are_named():
    model = network()
    acdc, _ = attach(model)
    epochs = acdc.epochs()
    next(epochs)
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"4\.weight"):
        next(epochs)


def test_weights_that_are_moved_past_the_optimizer_are_seen():
    model = network()
    acdc, _ = attach(model)
    epochs = acdc.epochs()
    assert [next(epochs).kind, next(epochs).kind] == ["dense", "sparse"]
    model[4].weight.data.add_(1)
    with pytest.raises(TrainingError, match=r"weights of 4\.weight .* not zero after epoch 1"):
        next(epochs)


def test_a_parameter_that_is_replaced_is_seen():
    model = network()
    acdc, _ = attach(model)
    epochs = acdc.epochs()
    next(epochs)
    model[4].weight = nn.Parameter(torch.randn(3, 16))
    with pytest.raises(UsageError, match=r"4\.weight was replaced"):
        next(epochs)


def test_attaching_checks_the_optimizer():
    model = network()
    with pytest.raises(UsageError, match=r"doesn't hold 4\.weight"):
        attach(model, torch.optim.SGD(model[:3].parameters(), 0.1))
    with pytest.raises(UsageError, match="Adagrad keeps 'sum'"):
        attach(model, torch.optim.Adagrad(model.parameters()))
    model[4].weight.requires_grad_(False)
    with pytest.raises(UsageError, match=r"4\.weight is frozen"):
        attach(model)


def test_an_optimizer_whose_state_is_unknown_is_refused_after_its_first_epoch():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["velocity"] = torch.ones_like(parameter)

    model = network()
    acdc, optimizer = attach(model, Odd(model.parameters(), 0.1))
    epochs = acdc.epochs()
    next(epochs)
    optimizer.step()
    with pytest.raises(UsageError, match="Odd keeps 'velocity'"):
        next(epochs)


def test_detaching_frees_the_weights():
    model = network()
    acdc, optimizer = attach(model)
    for epoch in acdc.epochs():
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        if epoch.kind == "sparse":
            assert acdc.sparsity == pytest.approx(0.7, abs=0.01)
            break
    acdc.detach()
    assert acdc.sparsity == 0
    step(model, optimizer, *next(batches(0)))
    assert (model[4].weight != 0).all()


def test_a_run_is_started_once_and_saved_when_it_is_complete(tmp_path):
    acdc, _ = attach(network())
    with pytest.raises(UsageError, match="has not begun"):
        acdc.save_pair(tmp_path / "pair", torch.zeros(1, 1, 4, 4))
    for epoch in acdc.epochs():
        if epoch.index == 4:
            break
    with pytest.raises(UsageError, match="not complete: it is in epoch 4, a sparse one"):
        acdc.save_pair(tmp_path / "pair", torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match="started before"):
        next(acdc.epochs())
    assert not (tmp_path / "pair").exists()


def test_wrapped_models_give_the_names_of_the_network_itself():
    model = network()
    acdc, _ = attach(nn.DataParallel(model), OPTIMIZERS["sgd"](model.parameters()))
    for _ in acdc.epochs():
        pass
    assert set(acdc._states["sparse"]) == set(model.state_dict())


def test_the_history_says_what_the_masks_did():
    model = network()
    acdc, optimizer = attach(model)
    names, dropped = ["0.weight", "4.weight"], {}
    for epoch in acdc.epochs():
        weights = torch.cat([dict(model.named_parameters())[name].flatten() for name in names])
        if epoch.kind == "sparse":
            dropped.setdefault(SCHEDULE.at(epoch.index), weights == 0)
        for x, y in batches(epoch.index):
            step(model, optimizer, x, y)
        acdc.record(loss=1)
    first, second, third = dropped.values()
    assert [(phase.kind, phase.start, phase.end) for phase in acdc.phases] == [
        (phase.kind, phase.start, phase.end) for phase in SCHEDULE.phases
    ]
    total, zeros = len(first), int(first.sum())
    for phase, before, now in ((acdc.phases[3], first, second), (acdc.phases[5], second, third)):
        assert phase.changed == pytest.approx(int((before != now).sum()) / total)
        assert phase.regrown == pytest.approx(int((before & ~now).sum()) / zeros)
        assert phase.regrown > 0
        assert sum(phase.nonzeros.values()) == total - zeros
    assert [phase.changed for phase in (acdc.phases[0], acdc.phases[1], acdc.phases[4])] == [None] * 3
    assert acdc.phases[2].nonzeros == {"0.weight": 36, "4.weight": 48}
    assert [(epoch.index, epoch.half, epoch.kind) for epoch in acdc.history[-3:]] == [
        (8, "sparse", "sparse"), (7, "dense", "dense"), (8, "dense", "dense"),
    ]  # fmt: skip


def test_a_parameter_that_is_frozen_midway_is_seen():
    model = network()
    acdc, _ = attach(model)
    epochs = acdc.epochs()
    next(epochs)
    model[4].weight.requires_grad_(False)
    with pytest.raises(UsageError, match=r"4\.weight is frozen"):
        next(epochs)


def test_layers_left_dense_are_named_with_the_reason():
    acdc, _ = attach(network(), pattern=Unstructured(0.5, exclude="0"))
    assert acdc.left_dense == {"0": "excluded by '0'"}
