"""Networks of every family, exported by torch and lowered for DeepSparse: the same numbers and zeros, all known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acdc_export.config import load_target
from acdc_export.engines import ensure, open_engine, status
from acdc_export.lowering import quantize
from acdc_export.pair import Pair
from benchmarks.families import pair_of

from .families import CPU, FAMILIES, inputs_of, integers, lowered, operators, run

UNKNOWN = {"LayerNormalization", "HardSwish", "HardSigmoid", "IsNaN", "And", "GatherND", "GatherElements"}
"""Operators that DeepSparse doesn't know, asked one by one."""


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("families")
    return pair_of(FAMILIES[request.param](), inputs_of(request.param), folder / request.param)


def test_it_computes_what_torch_computed(pair: Pair, tmp_path: Path) -> None:
    found = lowered(pair, tmp_path / "out.onnx", batch_size=2)
    inputs = {name: array[:2] for name, array in pair.reference.inputs.items()}
    np.testing.assert_allclose(run(found.path, inputs), pair.reference.sparse["logits"][:2], rtol=1e-4, atol=1e-5)


def test_every_zero_is_kept(pair: Pair, tmp_path: Path) -> None:
    found = lowered(pair, tmp_path / "out.onnx")
    zeros = sum(layer.zeros for layer in pair.record.pattern.layers.values())
    assert [step.name for step in found.steps] == ["canonical", *CPU.passes]
    assert all(step.zeros >= zeros for step in found.steps)
    assert [weight.zeros for weight in found.weights] == [weight.zeros for weight in found.canonical]


def test_no_operator_is_left_that_the_engine_does_not_know(pair: Pair, tmp_path: Path) -> None:
    assert not operators(lowered(pair, tmp_path / "out.onnx").path) & UNKNOWN


def test_full_integer_is_about_as_accurate_as_rounding_what_goes_into_layers(pair: Pair, tmp_path: Path) -> None:
    """In ONNX Runtime. Transformers have more between their layers; they are not what the scheme is for."""
    errors, wanted = {}, pair.reference.sparse["logits"]
    for scheme in ("full_integer", "qdq"):
        made = integers(pair, tmp_path, len(wanted), scheme, weight_bits=8, passes=("fold_batchnorm",))
        errors[scheme] = float(np.sqrt(np.square(run(made.path, pair.reference.inputs) - wanted).mean()))
    assert errors["full_integer"] < (3.0 if pair.path.name in ("vit", "bert") else 1.5) * errors["qdq"]


@pytest.mark.runtime
def test_deepsparse_takes_all_of_it(pair: Pair, tmp_path: Path) -> None:
    target = load_target("cpu")
    if status(target).state == "unavailable":
        pytest.skip(status(target).detail)
    environment = ensure(target)
    found = lowered(pair, tmp_path / "out.onnx", batch_size=1)
    inputs = {name: array[:1] for name, array in pair.reference.inputs.items()}
    with open_engine(target, environment, found.path, batch_size=1, threads=1) as engine:
        assert engine.info()["supported_ops"] >= 0.99
        outputs = engine.run(inputs)
    np.testing.assert_allclose(outputs["logits"], pair.reference.sparse["logits"][:1], rtol=1e-3, atol=1e-4)


@pytest.mark.runtime
def test_deepsparse_takes_all_of_it_in_integers(pair: Pair, tmp_path: Path) -> None:
    """Every layer, also where integers don't pay: larger networks of the family have them there."""
    target = load_target("cpu")
    if status(target).state == "unavailable":
        pytest.skip(status(target).detail)
    found = integers(pair, tmp_path, batch_size=1)
    assert not {weight.operator for weight in found.weights} & {"Conv", "Gemm", "MatMul"}
    quantize.dequantized.write(found.path, tmp_path / "exact.onnx")
    inputs = {name: array[:1] for name, array in pair.reference.inputs.items()}
    wanted = run(tmp_path / "exact.onnx", inputs)
    with open_engine(target, ensure(target), found.path, batch_size=1, threads=1, precision="int8") as engine:
        assert engine.info()["supported_ops"] >= 0.99
        outputs = engine.run(inputs)
    np.testing.assert_allclose(outputs["logits"], wanted, rtol=2e-2, atol=2e-2)
