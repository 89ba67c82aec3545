"""Networks of the size that people use: on DeepSparse's sparse path, with torch's own numbers.

One of each kind; the others, which take the engine up to a minute to prepare, are asked by `benchmarks.families`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acdc_export.config import load_target
from acdc_export.engines import ensure, open_engine, status
from benchmarks import families

from .families import lowered

NETWORKS = {
    "mobilenet_v1": pytest.mark.slow,
    "mobilenet_v2": pytest.mark.vision,
    "efficientnet_b0": pytest.mark.vision,
    "vit_s_16": pytest.mark.vision,
    "bert_base": pytest.mark.frameworks,
}


@pytest.mark.runtime
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in NETWORKS.items()])
def test_deepsparse_takes_all_of_it(name: str, tmp_path: Path) -> None:
    package, make, take = families.FAMILIES[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    target = load_target("cpu")
    if status(target).state == "unavailable":
        pytest.skip(status(target).detail)
    torch.manual_seed(0)
    pair = families.pair_of(make(), take(), tmp_path / name)
    found = lowered(pair, tmp_path / "out.onnx", batch_size=1)
    inputs = {key: array[:1] for key, array in pair.reference.inputs.items()}
    with open_engine(target, ensure(target), found.path, batch_size=1, threads=1) as engine:
        assert engine.info()["supported_ops"] >= 0.99
        outputs = engine.run(inputs)
    np.testing.assert_allclose(outputs["logits"], pair.reference.sparse["logits"][:1], rtol=1e-3, atol=1e-3)
