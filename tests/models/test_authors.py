"""The built-in networks are those of the AC/DC authors: their checkpoints load, and the logits agree.

`authors/` holds what their code writes. The forward passes of networks without a checkpoint there are written down here
a second time, as plain functions of a state dict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc_export.models import build

AUTHORS = Path(__file__).parent / "authors"
State = dict[str, Tensor]


def stored(network: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as the authors' checkpoints have them when their wrappers are taken off."""
    shapes = {}
    for line in (AUTHORS / f"{network}.txt").read_text(encoding="utf-8").splitlines():
        name, _, shape = line.partition(" ")
        if not name.endswith("_mask"):
            shapes[name.replace("._layer.", ".")] = tuple(int(size) for size in re.findall(r"\d+", shape))
    return shapes


@pytest.mark.parametrize(
    ("network", "name", "arguments", "parameters"),
    [
        ("resnet20", "resnet_cifar", {"depth": 20}, 272_474),
        ("mobilenet", "mobilenet_v1", {}, 4_231_976),
        ("wideresnet", "wide_resnet", {}, 36_546_980),
        pytest.param("resnet50", "torchvision.models:resnet50", {}, 25_557_032, marks=pytest.mark.vision),
    ],
)
def test_their_checkpoints_have_our_names_and_shapes(network, name, arguments, parameters):
    if "torchvision" in name:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    with torch.device("meta"):
        model = build(name, arguments)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == stored(network)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize("depth", [32, 44, 56])
def test_deeper_networks_for_cifar_go_on_as_resnet20_does(depth):
    blocks = (depth - 2) // 6
    shapes = stored("resnet20")
    for key, shape in stored("resnet20").items():
        stage, _, tensor = key.partition(".2.")
        if tensor:  # a block that repeats
            shapes |= {f"{stage}.{block}.{tensor}": shape for block in range(3, blocks)}
    with torch.device("meta"):
        model = build("resnet_cifar", {"depth": depth})
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("half", ["dense", "sparse"])
def test_a_pair_of_theirs_gives_their_logits(half):
    content = np.load(AUTHORS / "resnet20.npz")
    state = {
        key.partition("/")[2]: torch.from_numpy(content[key]) for key in content.files if key.startswith(f"{half}/")
    }
    model = build("resnet_cifar", {}).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(content["x"]))
    torch.testing.assert_close(logits, torch.from_numpy(content[half]), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------- the same by plain functions


def wide_resnet(state: State, x: Tensor, training: bool) -> Tensor:
    """WideResNet of the authors, with dropout 0.3; updates the running statistics in `state` where it is training."""
    x = conv(state, "conv1", x, padding=1)
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = conv(state, f"{name}.conv1", F.relu(norm(state, f"{name}.bn1", x, training)), padding=1)
            inner = F.dropout(inner, 0.3, training)
            inner = conv(state, f"{name}.conv2", F.relu(norm(state, f"{name}.bn2", inner, training)), stride, padding=1)
            shortcut = f"{name}.shortcut.0"
            x = inner + (conv(state, shortcut, x, stride) if f"{shortcut}.weight" in state else x)
            block += 1
    x = F.relu(norm(state, "bn1", x, training, momentum=0.9))
    return F.linear(F.avg_pool2d(x, 8).flatten(1), state["linear.weight"], state["linear.bias"])


def mobilenet(state: State, x: Tensor, training: bool) -> Tensor:
    """MobileNetV1 of the authors; updates the running statistics in `state` where it is training."""
    x = F.relu(norm(state, "model.0.1", conv(state, "model.0.0", x, 2, padding=1), training))
    for block in range(1, 14):
        name, stride = f"model.{block}", 2 if block in (2, 4, 6, 12) else 1
        x = conv(state, f"{name}.0", x, stride, padding=1, groups=x.shape[1])
        x = F.relu(norm(state, f"{name}.1", x, training))
        x = F.relu(norm(state, f"{name}.4", conv(state, f"{name}.3", x), training))
    return F.linear(F.avg_pool2d(x, 7).flatten(1), state["fc.weight"], state["fc.bias"])


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding, groups=groups)


def norm(state: State, name: str, x: Tensor, training: bool, momentum: float = 0.1) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], training, momentum)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "arguments", "side", "forward"),
    [
        ("wide_resnet", {"depth": 16, "width": 2}, 32, wide_resnet),
        ("wide_resnet", {"depth": 10, "width": 1, "classes": 7}, 32, wide_resnet),  # no shortcut in its first stage
        ("mobilenet_v1", {}, 224, mobilenet),
    ],
)
def test_the_forward_pass_is_theirs(
    name: str, arguments: dict[str, int], side: int, forward: Callable[[State, Tensor, bool], Tensor], training: bool
) -> None:
    torch.manual_seed(0)
    model = build(name, arguments).train(training)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():  # nothing may be where it hides in a zero or a one
            if key.endswith(("running_var", ".weight")) and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", ".bias")):
                tensor.normal_(0, 0.2)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        x = torch.randn(4, 3, side, side)
        torch.manual_seed(1)  # of dropout
        logits = model(x)
        torch.manual_seed(1)
        expected = forward(state, x, training)
    assert float(logits.std()) > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for key, tensor in model.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(tensor, state[key], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ where training starts


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def test_resnet_for_cifar_starts_from_their_normal_distribution():
    torch.manual_seed(0)
    for name, module in convolutions(build("resnet_cifar", {"depth": 32})).items():
        deviation = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
        sigmas = module.weight.detach() / deviation
        slack = 5 / math.sqrt(sigmas.numel())
        assert abs(float(sigmas.mean())) < slack, name
        assert abs(float(sigmas.std()) - 1) < slack, name
        if sigmas.numel() > 2000:
            assert float(sigmas.abs().max()) > 3, name  # a uniform distribution ends at 1.7


def test_wide_resnet_starts_from_xaviers_uniform_distribution_and_without_biases():
    torch.manual_seed(0)
    for name, module in convolutions(build("wide_resnet", {"depth": 16, "width": 4})).items():
        size = module.kernel_size[0] * module.kernel_size[1]
        bound = math.sqrt(2) * math.sqrt(6 / (size * (module.in_channels + module.out_channels)))
        assert 0.95 * bound < float(module.weight.detach().abs().max()) <= bound, name
        assert not module.bias.detach().any(), name
