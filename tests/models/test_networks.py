import pytest
import torch
from torch import nn

from acdc_export.errors import UsageError
from acdc_export.models import build
from acdc_export.training.layers import PRUNABLE

RESIDUAL_CNN = {"channels": 1, "width": 8, "blocks": 2, "classes": 10}


def test_residual_cnn_halves_the_resolution_once():
    model = build("residual_cnn", RESIDUAL_CNN).eval()
    seen = []
    model.body.stage2.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert seen == [(3, 16, 4, 4)]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 2 + 2 * 2 * 2
    assert convolutions[0] == "stem.0"


def test_a_residual_block_leads_its_input_around():
    model = build("residual_cnn", RESIDUAL_CNN).eval()
    block = model.body.stage1[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_residual_cnn_halves_it_by_its_stem_and_between_stages():
    model = build("residual_cnn", {**RESIDUAL_CNN, "stem_stride": 2, "stages": 3}).eval()
    seen = []
    for name, module in model.body.named_children():
        if name.startswith("stage"):
            module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert model(torch.zeros(3, 1, 24, 24)).shape == (3, 10)
    assert seen == [(3, 8, 12, 12), (3, 16, 6, 6), (3, 32, 3, 3)]


@pytest.mark.parametrize("name", ["wide_resnet", "wide_resnet_original"])
def test_wide_resnet_drops_out_in_training_alone(name):
    model = build(name, {"depth": 10, "width": 1, "dropout": 0.5})
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# He et al. tell 0.27 million parameters for ResNet-20 (which has 2,752 more in its two shortcuts here), Zagoruyko and
# Komodakis 36.5 million for WRN-28-10, Howard et al. 4.2 million for MobileNetV1.
@pytest.mark.parametrize(
    ("name", "parameters", "layers", "side", "classes"),
    [
        ("resnet_cifar", 269_722 + 2_752, 22, 32, 10),
        ("wide_resnet_original", 36_536_884, 29, 32, 100),
        ("mobilenet_v1", 4_231_976, 28, 224, 1000),
    ],
)
def test_by_default_they_are_the_networks_of_the_literature(name, parameters, layers, side, classes):
    with torch.device("meta"):  # shapes without numbers
        model = build(name, {})
        assert model(torch.zeros(2, 3, side, side)).shape == (2, classes)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert sum(isinstance(module, PRUNABLE) for module in model.modules()) == layers


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("residual_cnn", {**RESIDUAL_CNN, "stem_stride": 2}, (1, 24, 24)),
        ("resnet_cifar", {"depth": 14, "classes": 7, "channels": 1}, (1, 32, 32)),
        ("wide_resnet", {"depth": 10, "width": 2, "dropout": 0, "classes": 7}, (3, 32, 32)),
        ("wide_resnet_original", {"depth": 10, "width": 2, "classes": 7}, (3, 32, 32)),
        ("mobilenet_v1", {"multiplier": 0.25, "classes": 7}, (3, 224, 224)),
    ],
)
def test_they_can_be_exported_for_any_batch_size(name, arguments, shape):
    model = build(name, arguments).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.rand(3, *shape),), dynamic_shapes=({0: batch},))
    x = torch.rand(5, *shape)
    logits = program.module()(x)
    assert logits.shape == (5, arguments["classes"])
    torch.testing.assert_close(logits, model(x))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet_cifar", {"depth": 21}, "depth is 21"),
        ("resnet_cifar", {"depth": 2}, "depth is 2"),
        ("resnet_cifar", {"classes": 0}, "classes is 0"),
        ("wide_resnet", {"depth": 26}, "depth is 26"),
        ("wide_resnet", {"depth": 4}, "depth is 4"),
        ("wide_resnet", {"dropout": 1}, "dropout is 1"),
        ("wide_resnet", {"dropout": "0.3"}, "dropout is '0.3'"),
        ("wide_resnet_original", {"depth": 26}, "wide_resnet_original: depth is 26"),
        ("mobilenet_v1", {"multiplier": 0.01}, "multiplier is 0.01"),
        ("mobilenet_v1", {"multiplier": "half"}, "multiplier is 'half'"),
    ],
)
def test_arguments_that_make_no_network_are_refused(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        build(name, arguments)


@pytest.mark.vision
def test_torchvisions_networks_are_named_as_ones_own():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    with torch.device("meta"):
        model = build("torchvision.models:resnet50", {"num_classes": 10})
    assert sum(isinstance(module, PRUNABLE) for module in model.modules()) == 54


@pytest.mark.parametrize("depth", [20, 32])
def test_convolutions_of_resnet_cifar_start_as_the_authors(depth: int) -> None:
    """Normal, with the deviation sqrt(2 / (kernel height * width * filters)); the shortcuts' too."""
    torch.manual_seed(0)
    for name, module in build("resnet_cifar", {"depth": depth, "classes": 10}).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            height, width = module.kernel_size
            expected = (2 / (height * width * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) < 0.1 * expected
