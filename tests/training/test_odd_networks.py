"""The corpus of odd networks through `save_pair`, ONNX Runtime and DeepSparse, each with its expected outcome."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from acdc_export import engines, machine
from acdc_export.config import load_target
from acdc_export.errors import AcdcExportError, UsageError
from acdc_export.evidence import parity
from acdc_export.lowering import Deployment, lower
from acdc_export.pair import HALVES, Pair
from acdc_export.training import ACDC, Schedule, Unstructured

from .odd_networks import CORPUS, ROWS, Case

pytestmark = [pytest.mark.slow, pytest.mark.runtime]

SCHEDULE = Schedule.alternating(warmup=1, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)
TOLERANCE = 1e-3


def saved(case: Case, path: Path) -> Pair:
    """Train a network of the corpus for a step in each phase, and write its pair."""
    torch.manual_seed(0)
    model, inputs = case.make(), case.inputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.5, exclude=case.exclude))
    model.train()
    for _ in acdc.epochs():
        optimizer.zero_grad()
        returned = model(*inputs)
        logits = returned if isinstance(returned, Tensor) else next(iter(_tensors(returned)))
        nn.functional.cross_entropy(logits, torch.arange(ROWS) % logits.shape[1]).backward()
        optimizer.step()
    return acdc.save_pair(path, inputs, **case.options)


def _tensors(returned: object) -> list[Tensor]:
    values = returned.values() if isinstance(returned, Mapping) else returned
    return [value for value in values if isinstance(value, Tensor)]  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", CORPUS)
def test_an_odd_network_has_its_expected_outcome(name: str, tmp_path: Path) -> None:
    case = CORPUS[name]
    if case.refused is not None:
        with pytest.raises(UsageError, match=case.refused) as caught:
            saved(case, tmp_path / "pair")
        assert str(caught.value).count("\n") == 1
        assert not (tmp_path / "pair").exists()
        return
    pair = saved(case, tmp_path / "pair")
    assert tuple(spec.name for spec in pair.record.outputs) == case.outputs
    assert {*case.dense} <= {*pair.record.pattern.left_dense}
    assert all(layer.zeros for layer in pair.record.pattern.layers.values())
    in_onnxruntime(pair)
    if case.engine is not None:
        with pytest.raises(AcdcExportError, match=case.engine):
            in_deepsparse(pair, tmp_path)
    else:
        in_deepsparse(pair, tmp_path)


def in_onnxruntime(pair: Pair) -> None:
    """Every output of both halves, for as many rows as there are; and for one where the batch is open."""
    for half in HALVES:
        session = onnxruntime.InferenceSession(pair.onnx(half))
        for rows in (ROWS,) if pair.record.batch_size else (ROWS, 1):
            inputs = {key: array[:rows] for key, array in pair.reference.inputs.items()}
            references = pair.reference.outputs(half)
            for output, expected in zip(session.run([*references], inputs), references.values(), strict=True):
                np.testing.assert_allclose(output, expected[:rows], rtol=TOLERANCE, atol=TOLERANCE)


def in_deepsparse(pair: Pair, folder: Path) -> None:
    target = load_target("cpu")
    state = engines.status(target)
    if state.state == "unavailable":
        pytest.skip(state.detail)
    deployment = Deployment(engines.InstalledTarget(target, engines.ensure(target)), "fp32")
    cpus = machine.describe(1).cpus
    for half in HALVES:
        model = lower(pair.onnx(half), folder / half, deployment, (ROWS,), scratch=folder, cpus=cpus)[ROWS]
        with closing(deployment.open(model.path, ROWS, cpus)) as engine:
            outputs = engine.run(pair.reference.inputs)
        result = parity.compare(outputs, pair.reference.outputs(half), TOLERANCE)
        assert result.ok, f"{half}: {result}"
