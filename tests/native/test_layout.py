"""Where tensors lie: nothing that is needed is overwritten, and nothing writes where a border is kept."""

from __future__ import annotations

import tempfile
from itertools import combinations
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from acdc_export.native import reference
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layout import Layout, Storage, lay_out

from .conftest import build
from .networks import Net, parity
from .strategies import networks


def laid_out(model: onnx.ModelProto) -> Layout:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        return lay_out(fuse(read(Path(folder) / "model.onnx")))


def storages(layout: Layout) -> list[Storage]:
    every = [storage for step in layout.steps for storage in (*step.reads, step.writes) if storage is not None]
    return list({id(storage): storage for storage in every}.values())


def memory(storage: Storage) -> range:
    start = storage.base - storage.origin
    return range(start, start + storage.words)


def overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


@settings(
    max_examples=150, derandomize=True, database=None, phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(networks(10), st.booleans())
def test_memory(net: Net, integer: bool) -> None:
    layout = laid_out(net.quantized() if integer else net.model())
    bordered = [range(start, start + words) for start, words, _, _ in layout.borders]
    for storage in storages(layout):
        assert memory(storage).start >= 0
        assert memory(storage).stop <= layout.words
        assert storage.base % 16 == 0 or storage.bordered  # a cache line
        if not storage.bordered:
            assert not any(overlap(memory(storage), kept) for kept in bordered)
    for a, b in combinations(storages(layout), 2):
        if a.last < b.first or b.last < a.first:
            assert not overlap(memory(a), memory(b)) or a.bordered == b.bordered
        else:
            assert not overlap(memory(a), memory(b)), (a.tensor.name, b.tensor.name)
        if a.bordered and b.bordered and overlap(memory(a), memory(b)):
            assert a.kind == b.kind


def test_memory_is_used_again(tmp_path: Path) -> None:
    """A chain of layers needs room for two of its tensors, and not for all."""
    net = Net((8, 32, 32))
    x = "x0"
    for _ in range(20):
        x = net.function(x, "Sigmoid")
    net.outputs.append(x)
    layout = laid_out(net.model())
    assert layout.words < 3 * 8 * 32 * 33


def check(net: Net, integer: bool, folder: Path) -> None:
    """Twice, since what the first run leaves may be in the way of the second."""
    built = build(net.quantized() if integer else net.model(), folder)
    with built.library() as library:
        for seed in (1, 2):
            x = net.samples(2, seed)
            expected = reference.run(built.network, x)
            for name, values in library.run(x).items():
                assert parity(values, expected[name]) < 1e-5


@pytest.mark.parametrize("integer", [False, True])
def test_shifted_copies_of_other_widths_keep_their_borders(integer: bool, tmp_path: Path) -> None:
    """Padding at one side only: the copies begin at the same place, but lie at other distances."""
    net = Net((24, 4, 16))
    x = "x0"
    for outputs in (8, 40, 16, 12):
        x = net.point(net.function(net.conv(x, outputs, (1, 3), pads=(0, 0, 0, 2)), "Relu"))
    net.outputs.append(net.conv(x, 4, (1, 3), pads=(0, 0, 0, 2)))
    check(net, integer, tmp_path)


def test_borders_of_reals_and_of_levels_are_kept_apart(tmp_path: Path) -> None:
    """The same number, 128, is one pattern of bits as FP32, and another as four levels of uint8."""
    net = Net((4, 6, 6))
    real = net.pad(net.function("x0", "Neg"), (1, 1), (1, 1), 128.0)  # no point
    net.outputs.append(net.global_pool(net.function(real, "Tanh")))
    levels = net.point(net.function(net.point(net.function("x0", "Abs")), "Tanh"))
    levels = net.point(net.pad(levels, (1, 1), (1, 1), 0.0), same=levels)
    net.outputs.append(net.function(levels, "Identity"))
    net.limits[levels] = (-1.28, 1.27)  # its zero point is 128
    check(net, True, tmp_path)
