"""Libraries of random networks, on every instruction set: FP32 beside ONNX Runtime, INT8 beside the reference."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from acdc_export.native import reference

from .conftest import HERE, Choose, build
from .networks import Net, parity, run
from .strategies import choosers, networks

PHASES = (Phase.generate, Phase.shrink)
FEW = settings(max_examples=10, derandomize=True, database=None, phases=PHASES, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=120, database=None, phases=PHASES, suppress_health_check=list(HealthCheck))


def check_real(net: Net, choose: Choose, batch: int) -> None:
    model, inputs = net.model(), net.samples(batch)
    expected = run(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        built = build(model, Path(folder), HERE, choose)
        computed = reference.run(built.network, inputs)
        for name, values in zip(net.outputs, expected, strict=True):
            assert parity(computed[name], values) < 1e-5
        for instruction_set in HERE:
            for threads in (1, 2):
                with built.library(instruction_set, threads) as library:
                    outputs = library.run(inputs)
                for name, values in zip(net.outputs, expected, strict=True):
                    assert outputs[name].shape == values.shape
                    assert parity(outputs[name], values) < 1e-4, (instruction_set, threads, name)


def check_integer(net: Net, choose: Choose, batch: int, bits: int) -> None:
    model, inputs = net.quantized(bits=bits), net.samples(batch)
    with tempfile.TemporaryDirectory() as folder:
        built = build(model, Path(folder), HERE, choose)
        expected = reference.run(built.network, inputs)
        for instruction_set in HERE:
            for threads in (1, 2):
                with built.library(instruction_set, threads) as library:
                    outputs = library.run(inputs)
                for name in net.outputs:
                    np.testing.assert_array_equal(
                        outputs[name], expected[name], f"{instruction_set}, {threads} threads"
                    )


@FEW
@given(networks(), choosers(), st.integers(1, 3))
def test_real_networks(net: Net, choose: Choose, batch: int) -> None:
    check_real(net, choose, batch)


@FEW
@given(networks(), choosers(), st.integers(1, 3), st.sampled_from((8, 7)))
def test_integer_networks(net: Net, choose: Choose, batch: int, bits: int) -> None:
    check_integer(net, choose, batch, bits)


@pytest.mark.slow
@MANY
@given(networks(10), choosers(), st.integers(1, 5))
def test_many_real_networks(net: Net, choose: Choose, batch: int) -> None:
    check_real(net, choose, batch)


@pytest.mark.slow
@MANY
@given(networks(10), choosers(), st.integers(1, 5), st.sampled_from((8, 7)))
def test_many_integer_networks(net: Net, choose: Choose, batch: int, bits: int) -> None:
    check_integer(net, choose, batch, bits)
