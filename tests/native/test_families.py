"""Networks of every family, as torch exports them and as our scheme quantizes them, and a pair with trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from acdc_export import Unstructured, models
from acdc_export.config import load_target
from acdc_export.errors import GraphError
from acdc_export.native import reference
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.pair import Pair
from acdc_export.records.history import PhaseRecord
from acdc_export.training.to_onnx import write_pair
from benchmarks.families import pair_of

from ..lowering.families import FAMILIES, inputs_of, integers
from .conftest import HERE, build
from .networks import parity, run

NATIVE = load_target("native").graph
AUTHORS = Path(__file__).parents[1] / "models" / "authors" / "resnet20.npz"
CONVOLUTIONAL = [name for name in FAMILIES if name not in ("shufflenet", "vit", "bert")]


def images(side: int, rows: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"input": torch.randn(rows, 3, side, side)}


def torchvision(name: str) -> nn.Module:
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    if name.startswith("vgg"):  # whose head has 120 million weights
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model


def trained(path: Path) -> Pair:
    """A pair that the AC/DC authors trained: unstructured, unevenly."""
    content = np.load(AUTHORS)
    states = {
        half: {key.partition("/")[2]: torch.from_numpy(content[key]) for key in content.files if f"{half}/" in key}
        for half in ("sparse", "dense")
    }
    pattern = Unstructured(0.9)
    model = models.build("resnet_cifar", {}).eval()
    return write_pair(
        path, model, states["sparse"], states["dense"], (torch.from_numpy(content["x"]),), pattern=pattern,
        pruned=list(pattern.select(model).weights), left_dense={}, unit="epoch",
        phases=[PhaseRecord("dense", 0, 1), PhaseRecord("sparse", 1, 2)], epochs=[], metrics={}, input_names=["input"],
    )  # fmt: skip


def check(pair: Pair, folder: Path) -> None:
    check_real(pair.onnx("sparse"), pair, folder)
    check_integer(pair, folder)


def check_real(model: Path, pair: Pair, folder: Path) -> None:
    inputs = pair.reference.inputs
    built = build(onnx.load(model), folder, HERE, name="fp32")
    for instruction_set in (HERE[0], HERE[-1]):
        with built.library(instruction_set, threads=2) as library:
            assert parity(library.run(inputs)["logits"], pair.reference.sparse["logits"]) < 1e-4


def check_integer(pair: Pair, folder: Path) -> None:
    """Exactly as the reference on every instruction set, and as near to FP32 as ONNX Runtime is with that graph."""
    inputs, expected = pair.reference.inputs, pair.reference.sparse["logits"]
    graph = integers(pair, folder, 1, "full_integer", weight_bits=8, passes=NATIVE.passes)
    built = build(onnx.load(graph.path), folder, HERE, name="int8")
    computed = reference.run(built.network, inputs)["logits"]
    for instruction_set in HERE:
        for threads in (1, 2):
            with built.library(instruction_set, threads) as library:
                np.testing.assert_array_equal(library.run(inputs)["logits"], computed)
    rows = ({name: array[at : at + 1] for name, array in inputs.items()} for at in range(len(expected)))
    theirs = np.concatenate([run(onnx.load(graph.path), row)[0] for row in rows])
    errors = [float(np.sqrt(np.square(values - expected).mean())) for values in (computed, theirs)]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_families(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(pair_of(FAMILIES[name](), inputs_of(name), tmp_path / name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "shufflenet"])
def test_other_families_are_refused(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = pair_of(FAMILIES[name](), inputs_of(name), tmp_path / name)
    with pytest.raises(GraphError):
        fuse(read(pair.onnx("sparse")))


@pytest.mark.slow
def test_a_trained_pair(tmp_path: Path) -> None:
    pair = trained(tmp_path / "resnet20")
    check(pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "side"),
    [
        (partial(models.build, "mobilenet_v1", {}), 224),
        (partial(models.build, "wide_resnet", {"depth": 16, "width": 2}), 32),
    ],
    ids=["mobilenet_v1", "wide_resnet"],
)
def test_built_in_networks(make: Callable[[], nn.Module], side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(pair_of(make(), images(side), tmp_path / "pair"), tmp_path)


@pytest.mark.vision
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet50", 64), ("mobilenet_v2", 64), ("mobilenet_v3_small", 64), ("efficientnet_b0", 64),
        ("densenet121", 64), ("vgg11_bn", 224),
    ],
)  # fmt: skip
def test_torchvision(name: str, side: int, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    check(pair_of(torchvision(name), images(side), tmp_path / name), tmp_path)
