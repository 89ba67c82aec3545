"""Where INT8 goes wrong if it does: between two levels, and beyond 16 bits. Exact on every instruction set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acdc_export.native import reference
from acdc_export.native.layout import Layout
from acdc_export.native.plan import Choice, Plan, Tiling, kernels

from .conftest import HERE, build
from .networks import Net, run


def halves() -> tuple[Net, dict[str, float]]:
    """Integer layers with scales that are powers of two, so that many results lie between two levels; and the steps."""
    net = Net((6, 8, 16), (6, 8, 16), seed=4)
    weights = net.random.integers(-1, 2, (6, 6, 1, 1)).astype(np.float32) / 2
    weights[:, 0] = 127 / 128  # so that their scale is 1/128; the first channel is 0
    pointwise = net.constant(np.full((6, 1, 1), 0.75, np.float32)), net.constant(np.full((6, 1, 1), 0.5, np.float32))
    steps = {
        net.conv("x0", 6, 1, weights=weights, bias=False): 2.0,
        net.binary("Add", net.conv("x0", 6, 1, weights=weights, bias=False), "x1"): 4.0,
        net.binary("Add", "x0", "x1"): 2.0,
        net.binary("Sub", "x0", "x1"): 2.0,
        net.binary("Mul", "x0", "x1"): 128.0,
        net.binary("Mul", "x0", net.point(net.global_pool("x1"))): 8.0,
        net.pool("x0", "AveragePool", 2, 1): 1.0,
        net.pool("x0", "AveragePool", 2, 2, 1): 1.0,
        net.node("Add", [net.node("Mul", ["x0", pointwise[0]], (6, 8, 16)), pointwise[1]], (6, 8, 16)): 1.0,
        net.concat("x0", "x1"): 2.0,
    }
    for name in steps:
        net.outputs.append(net.function(net.point(name), "Identity"))
    steps |= {"x0": 1.0, "x1": 1.0}
    net.limits = {name: (-127 * step, 128 * step) for name, step in steps.items()}
    return net, {name: steps[net.nodes[-len(net.outputs) + at].input[0]] for at, name in enumerate(net.outputs)}


def test_what_lies_between_two_levels(tmp_path: Path) -> None:
    """It goes to the even one, in every layer, on every instruction set."""
    net, steps = halves()
    random = np.random.default_rng(0)
    x = {name: random.integers(-127, 129, (3, *net.shapes[name])).astype(np.float32) for name in net.inputs}
    x["x0"][:, 0] = 0
    built = build(net.quantized(), tmp_path, HERE)
    assert {type(layer).__name__ for layer in built.network.layers} == {
        "Quantize", "Product", "Pool", "Binary", "Affine", "Concat", "Dequantize", "Function"
    }  # fmt: skip
    for name, exact in zip(net.outputs, run(net.model(), x), strict=True):
        between = np.abs(exact / steps[name] % 1 - 0.5) == 0
        assert between.any(), name
    expected = reference.run(built.network, x)
    for instruction_set in HERE:
        with built.library(instruction_set) as library:
            for name, values in library.run(x).items():
                np.testing.assert_array_equal(values, expected[name], f"{name} on {instruction_set}")


def extremes() -> Net:
    """Weights whose products with the largest levels don't fit into 16 bits in pairs, just don't, and just do."""
    net = Net((9, 3, 20))
    rows = [
        [127] * 9, [-127] * 9, [127, -127] * 4 + [127], [127, 1] * 4 + [1], [127, 2] * 4 + [1],
        [-127, -1, -127, -2] * 2 + [1],
        [64, 64] * 4 + [127], [65, 64] * 4 + [127], [0, 127, 127, 0] * 2 + [0], [0] * 8 + [127],
    ]  # fmt: skip
    weights = np.array(rows, np.float32)
    a = net.conv("x0", 10, 1, weights=weights[:, :, None, None], bias=False)
    b = net.conv("x0", 10, (1, 3), weights=np.stack([weights[:, :, None]] * 3, axis=3), bias=False, pads=(0, 1, 0, 1))
    flat = net.point(net.flatten(net.point(net.global_pool("x0", "GlobalMaxPool"), same="x0")), same="x0")
    c = net.node("Gemm", [flat, net.constant(weights, "w")], (10,), transB=1)
    net.outputs += [a, b, c]
    net.limits = {"x0": (-100.0, 155.0)}  # its levels are integers, its zero point 100
    return net


@pytest.mark.parametrize("kernel", [0, 1])
def test_sums_that_do_not_fit_into_16_bits(kernel: int, tmp_path: Path) -> None:
    """As vpmaddubsw makes them, where there is no VNNI: by all kernels, for the levels 0 and 255 above all."""

    def choose(layout: Layout, plan: Plan) -> Plan:
        choices = {
            at: Choice(kernels(layout.steps[at])[kernel], {name: Tiling() for name in HERE}) for at in plan.choices
        }
        return replace(plan, choices=choices)

    net = extremes()
    built = build(net.quantized(), tmp_path, HERE, choose)
    x = {"x0": np.random.default_rng(0).choice([-100, 0, 154, 155], (4, 9, 3, 20)).astype(np.float32)}
    x["x0"][0], x["x0"][1] = 155, -100
    exact = run(net.model(), x)
    for instruction_set in HERE:
        with built.library(instruction_set) as library:
            for values, expected in zip(library.run(x).values(), exact, strict=True):
                np.testing.assert_array_equal(values, expected, instruction_set)
