"""The reference itself, beside numbers that were worked out by hand from what `layers.py` defines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acdc_export.native import reference
from acdc_export.native.layers import (
    Affine,
    AnyLayer,
    Binary,
    Concat,
    Dequantize,
    Network,
    Pool,
    Product,
    Quantize,
    Quantized,
    Table,
    Tensor,
    Window,
)

UNIT = Quantized(1.0, 0)


def levels(
    layer: AnyLayer, *inputs: list[int], zeros: tuple[int, ...] = (0, 0), out: Quantized | None = UNIT
) -> list[float]:
    """What a layer makes of rows of levels: one channel, one row."""
    shape = (1, 1, len(inputs[0]))
    tensors = {f"u{at}": Tensor(f"u{at}", (1, 1, len(row)), Quantized(1.0, zeros[at])) for at, row in enumerate(inputs)}
    layers: list[AnyLayer] = []
    given = {}
    for at, row in enumerate(inputs):
        tensors[f"x{at}"] = Tensor(f"x{at}", (1, 1, len(row)))
        layers.append(Quantize("", "", (f"x{at}",), f"u{at}"))
        given[f"x{at}"] = np.array(row, np.float32) - zeros[at]
    tensors["y"] = Tensor("y", shape, out)
    layers.append(replace(layer, inputs=tuple(f"u{at}" for at in range(len(inputs))), output="y"))
    network = Network(tuple(layers), tensors, tuple(given), ("y",))
    return reference.compute(network, {name: row[None] for name, row in given.items()})["y"].reshape(-1).tolist()


def product(weight: int, bias: int, multiplier: float, **more: object) -> Product:
    return Product(
        "", "", (), "", np.full((1, 1, 1, 1), weight, np.int8), np.array([bias], np.int32), low=0.0, high=255.0,
        multipliers=np.array([multiplier], np.float32), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_products_round_to_even_and_saturate() -> None:
    assert levels(product(1, 0, 0.5), [0, 1, 2, 3, 4, 5, 7, 255]) == [0, 0, 1, 2, 2, 2, 4, 128]
    assert levels(product(-1, 100, 0.5), [0, 99, 100, 101, 255]) == [50, 0, 0, 0, 0]
    assert levels(product(127, 0, 1.0), [0, 1, 2, 3]) == [0, 127, 254, 255]
    assert levels(product(-1, 0, 0.5), [1, 3, 5], out=Quantized(1.0, 10)) == [10, 8, 8]  # -0.5, -1.5, -2.5


def test_a_residual_is_added_before_it_is_rounded() -> None:
    layer = product(1, -2, 0.25, residual=0.25)
    assert levels(layer, [1, 2, 3], [3, 2, 3]) == [0, 0, 1]  # 0.5, 0.5, 1.0
    assert levels(layer, [10, 10, 10], [0, 1, 3]) == [2, 2, 3]  # 2.0, 2.25, 2.75


def test_limits_are_levels() -> None:
    layer = replace(product(1, 0, 1.0), low=20.0, high=30.0)
    assert levels(layer, [0, 25, 99]) == [20, 25, 30]


def test_products_to_fp32() -> None:
    assert levels(product(3, 1, 0.5), [0, 1, 2], out=None) == [0.5, 2.0, 3.5]


def test_the_others() -> None:
    affine = Affine("", "", (), "", np.array([0.5], np.float32), np.array([0.25], np.float32), 0.0, 255.0)
    assert levels(affine, [0, 1, 2, 3, 4]) == [0, 1, 1, 2, 2]  # 0.25, 0.75, 1.25, 1.75, 2.25
    total = Binary("", "", (), "", "add", (0.5, 0.25), 0.0, 255.0)
    assert levels(total, [10, 11, 0], [2, 2, 5], zeros=(10, 2)) == [0, 0, 0]  # 0, 0.5, -5 + 0.75
    assert levels(total, [20, 13], [2, 10], zeros=(10, 2), out=Quantized(1.0, 5)) == [10, 9]  # 5; 1.5 + 2 = 3.5
    scale = Binary("", "", (), "", "mul", (0.5, 0.0), 0.0, 255.0)
    assert levels(scale, [10, 13, 7], [2, 3, 5], zeros=(10, 2), out=Quantized(1.0, 100)) == [100, 102, 96]
    assert levels(Table("", "", (), "", np.arange(256, dtype=np.uint8)[::-1].copy()), [0, 5, 255]) == [255, 250, 0]


def test_averages_leave_out_padding_or_count_it() -> None:
    window = Window((1, 3), pads=(0, 1, 0, 1))
    pool = Pool("", "", (), "", "average", window, False, 1.0)
    assert levels(pool, [6, 12, 18]) == [9, 12, 15]
    assert levels(replace(pool, count_padding=True), [6, 12, 18]) == [6, 12, 10]
    assert levels(pool, [6, 12, 18], zeros=(6,), out=Quantized(1.0, 1)) == [4, 7, 10]  # 3, 6, 9


def test_the_largest_of_a_window() -> None:
    window = Window((1, 3), strides=(1, 1), pads=(0, 1, 0, 1))
    assert levels(Pool("", "", (), "", "max", window), [5, 1, 9]) == [5, 9, 9]


def test_joined_tensors_go_through_tables() -> None:
    double = np.minimum(np.arange(256) * 2, 255).astype(np.uint8)
    tables = (np.arange(256, dtype=np.uint8), double)
    tensors = {name: Tensor(name, (1, 1, 2)) for name in ("x0", "x1")} | {
        name: Tensor(name, (1, 1, 2), UNIT) for name in ("u0", "u1")
    }
    tensors["y"] = Tensor("y", (2, 1, 2), UNIT)
    layers = (
        Quantize("", "", ("x0",), "u0"), Quantize("", "", ("x1",), "u1"),
        Concat("", "", ("u0", "u1"), "y", tables),
    )  # fmt: skip
    network = Network(layers, tensors, ("x0", "x1"), ("y",))
    given = {"x0": np.array([[1, 2]], np.float32), "x1": np.array([[3, 200]], np.float32)}
    assert reference.compute(network, given)["y"].reshape(-1).tolist() == [1, 2, 6, 255]


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (0.25, 100),
        (0.75, 102),
        (1.25, 102),
        (-0.25, 100),
        (1e30, 255),
        (-1e30, 0),
        (np.inf, 255),
        (-np.inf, 0),
        (np.nan, 0),
    ],
)
def test_quantizing(value: float, level: int) -> None:
    """x / 0.5, rounded to even, and 100. What is not a number is the least one."""
    tensors = {
        "x": Tensor("x", (1, 1, 1)),
        "u": Tensor("u", (1, 1, 1), Quantized(0.5, 100)),
        "y": Tensor("y", (1, 1, 1)),
    }
    network = Network((Quantize("", "", ("x",), "u"), Dequantize("", "", ("u",), "y")), tensors, ("x",), ("y",))
    with np.errstate(invalid="ignore"):
        values = reference.compute(network, {"x": np.array([[value]], np.float32)})
    assert values["u"].item() == level
    assert values["y"].item() == (level - 100) / 2
