import torch
from torch import nn

from acdc_export.records.history import PhaseRecord
from acdc_export.training import flops


def test_flops_are_those_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=True),  # (8, 4, 4) of (3, 8, 8)
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (8, 2, 2)
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    model.train()
    before = model[1].running_mean.clone()
    counted = flops.count(model, lambda: model(torch.randn(5, 3, 8, 8)), 5)
    assert counted.uses == {"0.weight": 16, "4.weight": 4, "7.weight": 1}
    assert counted.weights == {"0.weight": 216, "4.weight": 72, "7.weight": 80}
    #             bias + norm       + relu     + pool           + mean      + bias
    assert counted.rest == 8 * 16 + 2 * 8 * 16 + 8 * 16 + 4 * 8 * 4 + 8 * 2 * 2 + 10
    assert counted.total({}) == counted.rest + 2 * (216 * 16 + 72 * 4 + 80)
    assert counted.total({"0.weight": 16, "7.weight": 8}) == counted.rest + 2 * (16 * 16 + 72 * 4 + 8)
    assert model.training
    assert torch.equal(model[1].running_mean, before)  # nothing was learnt from counting


def test_a_linear_layer_costs_as_often_as_it_is_used():
    model = nn.Linear(4, 6, bias=False)
    assert flops.count(model, lambda: model(torch.randn(2, 7, 4)), 2).uses == {"weight": 7}


def test_the_cost_of_a_run_is_summed_over_its_phases():
    counted = flops.Flops(uses={"a": 10, "b": 1}, weights={"a": 100, "b": 50}, rest=8)
    dense = 8 + 2 * (1000 + 50)
    phases = [
        PhaseRecord("dense", 0, 2, {"a": 100}),
        PhaseRecord("sparse", 2, 3, {"a": 10}),
        PhaseRecord("dense", 3, 5, {"a": 98}),
        PhaseRecord("sparse", 5, 9, {"a": 10}),
    ]
    sparse, nearly = 8 + 2 * (100 + 50), 8 + 2 * (980 + 50)
    cost = flops.cost(counted, phases)
    assert (cost.dense, cost.sparse) == (dense, sparse)
    common = 2 * dense + sparse + 2 * nearly
    assert cost.training_sparse == 3 * (common + 4 * sparse)
    assert cost.training_dense == 3 * (common + 4 * dense)
    assert cost.training_multiplied == 3 * 9 * dense
