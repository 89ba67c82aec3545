import pytest
import torch
from torch import nn

from acdc_export.errors import TrainingError, UsageError
from acdc_export.training import Unstructured


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 8, 3)), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def test_layers_are_the_weights_of_convolutions_and_linears():
    model = network()
    layers = Unstructured(0.5).layers(model)
    assert list(layers) == ["0.weight", "3.0.weight", "5.weight"]
    assert layers["3.0.weight"] is model[3][0].weight
    assert set(layers) <= set(model.state_dict())
    assert list(Unstructured(0.5).layers(nn.Linear(9, 9))) == ["weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [(("0",), ["3.0.weight", "5.weight"]), (("3.*", "5"), ["0.weight"]), ("5", ["0.weight", "3.0.weight"])],
)
def test_exclusions_go_by_module_name(exclude, left):
    assert list(Unstructured(0.5, exclude=exclude).layers(network())) == left


@pytest.mark.parametrize(
    ("sparsity", "total", "zeros"),
    [
        (0.9, 1000, 900),
        (0.9, 1001, 901),
        (0.7, 10, 7),
        (0.1, 10, 1),
        (0.07, 100, 7),
        (0.55, 100, 55),
        (0.5, 3, 2),
        (1e-9, 10, 1),
    ],
)
def test_zeros_are_counted_in_decimal(sparsity, total, zeros):
    # In floats 0.07 * 100 is 7.000000000000001, and 0.55 * 100 is 55.00000000000001.
    assert Unstructured(sparsity).zeros(total) == zeros


def test_uniform_gives_each_layer_its_share_and_global_the_sum():
    torch.manual_seed(0)
    weights = Unstructured(0.5).layers(network())
    with torch.no_grad():
        weights["5.weight"].mul_(100)  # the largest ones, all in one layer
    uniform = {name: int((~mask).sum()) for name, mask in Unstructured(0.6, "uniform").masks(weights).items()}
    assert uniform == {"0.weight": 22, "3.0.weight": 173, "5.weight": 192}
    together = {name: int((~mask).sum()) for name, mask in Unstructured(0.4).masks(weights).items()}
    assert sum(together.values()) == 258  # ceil(0.4 * 644)
    assert together["5.weight"] < 10


def test_bad_patterns_are_refused():
    for sparsity in (0, 1, -0.1, 1.5, 90, float("nan")):
        with pytest.raises(UsageError, match="not between 0 and 1"):
            Unstructured(sparsity)
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        Unstructured(0.5, "unifrom")  # type: ignore[arg-type]


def test_an_exclusion_that_matches_nothing_is_refused():
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(1, 4, 3)))
    model.add_module("head", nn.Linear(4, 4))
    with pytest.raises(UsageError, match=r"'haed' excludes nothing \(did you mean 'head'\?\)"):
        Unstructured(0.5, exclude=("haed",)).layers(model)
    with pytest.raises(UsageError, match=r"did you mean 'stem\.0'"):
        Unstructured(0.5, exclude=("stem",)).layers(model)  # the container, which has no weight of its own


def test_models_that_can_not_be_pruned_are_refused():
    with pytest.raises(UsageError, match="no weights to prune"):
        Unstructured(0.5).layers(nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="no weights to prune"):
        Unstructured(0.5, exclude=("*",)).layers(network())
    with pytest.raises(UsageError, match="has no shape yet"):
        Unstructured(0.5).layers(nn.LazyLinear(3))
    with pytest.raises(UsageError, match="parametrization"):
        Unstructured(0.5).layers(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match=r"weight is float64"):
        Unstructured(0.5).layers(nn.Linear(4, 4).double())
    with pytest.raises(UsageError, match="none would be left"):
        Unstructured(0.9, "uniform").layers(nn.Sequential(nn.Linear(64, 64), nn.Linear(5, 1)))


def test_shared_weights_are_refused_unless_excluded():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(UsageError, match=r"0\.weight and 2\.weight are one parameter"):
        Unstructured(0.5).layers(tied)
    assert list(Unstructured(0.5, exclude=("0", "2")).layers(tied)) == ["1.weight"]

    embedding = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    embedding[1].weight = embedding[0].weight
    with pytest.raises(UsageError, match="one parameter"):
        Unstructured(0.5).layers(embedding)

    layer = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="one parameter"):
        Unstructured(0.5).layers(nn.Sequential(layer, layer))


def test_a_layer_without_any_weight_left_is_an_error():
    weights = {"a": torch.full((4, 4), 1e-6), "b": torch.randn(100, 4)}
    with pytest.raises(TrainingError, match="Every weight of a would be zero"):
        Unstructured(0.5).masks(weights)
