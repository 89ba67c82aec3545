"""Names from a file are text in C, whatever is in them; what the C file holds can be read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from acdc_export.native import reference
from acdc_export.native.emit import emit
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layout import lay_out
from acdc_export.native.plan import guess

from .conftest import build
from .networks import Net, parity

HOSTILE = (
    'a"b', "a\\b", "a\nb", "*/ int x; /*", "//", "??/", "%s%n", "größe", "a\tb", "\\", '"', "\x1b[31m", "'", " ",
    "#define x", "x" * 3000, "\\n", "\u202e", "{@TITLE@}", '");\nabort();("', "日本",
)  # fmt: skip


def test_names_are_text_in_c(tmp_path: Path) -> None:
    """Each is the name of a node, of an input and of an output of one network."""
    net = Net(*[(3, 4, 4)] * len(HOSTILE))
    for name in net.inputs:
        net.outputs.append(net.function(net.conv(name, 2), "Relu"))
    model = net.model()
    names = dict(zip(net.inputs, (f"in {name}" for name in HOSTILE), strict=True))
    names |= dict(zip(net.outputs, (f"out {name}" for name in HOSTILE), strict=True))
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for at, node in enumerate(model.graph.node):
        node.name = HOSTILE[at // 2]
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    built = build(model, tmp_path)
    inputs = {names[name]: values for name, values in net.samples().items()}
    expected = reference.run(built.network, inputs)
    with built.library() as library:
        assert [port.name for port in library.inputs] == [f"in {name}" for name in HOSTILE]
        assert [port.name for port in library.outputs] == [f"out {name}" for name in HOSTILE]
        for name, values in library.run(inputs).items():
            assert parity(values, expected[name]) < 1e-5
        profile = [timed.name for timed in library.profile(inputs, 1) if timed.operator == "Conv"]
        assert sorted(profile) == sorted(HOSTILE)


def program(net: Net, folder: Path, title: str = "net") -> str:
    onnx.save(net.model(), folder / "net.onnx")
    layout = lay_out(fuse(read(folder / "net.onnx")))
    return emit(layout, guess(layout, ["avx2"], 1), "net", title, "").program


@pytest.mark.parametrize("title", ["*/ abort(); /*", "a\nb", "*" * 3 + "/" * 3, "\\", "/*/"])
def test_a_title_stays_in_its_comment(title: str, tmp_path: Path) -> None:
    net = Net((3, 4, 4))
    net.outputs.append(net.conv("x0", 2))
    text = program(net, tmp_path, title)
    comment = re.match(r"/\*.*?\*/", text, re.DOTALL)
    assert comment
    assert comment[0].endswith("the network as tables, and the runtime. */")


def test_layers_can_be_told_apart(tmp_path: Path) -> None:
    net = Net((3, 4, 4))
    net.outputs.append(net.function(net.conv("x0", 2), "Sigmoid"))
    text = program(net, tmp_path)
    assert "/* Conv Conv_t0: 3x4x4 -> 2x4x4 */" in text
    assert "/* Sigmoid Sigmoid_t1: 2x4x4 -> 2x4x4 */" in text


def test_equal_arrays_are_stored_once(tmp_path: Path) -> None:
    sizes = []
    for shared in (False, True):
        net = Net((8, 4, 4))
        weights = net.weights((8, 8, 3, 3))
        x = "x0"
        for _ in range(6):
            x = net.conv(x, 8, weights=weights if shared else net.weights((8, 8, 3, 3)), bias=False)
        net.outputs.append(x)
        onnx.save(net.model(), tmp_path / "net.onnx")
        layout = lay_out(fuse(read(tmp_path / "net.onnx")))
        sizes.append(len(emit(layout, guess(layout, ["avx2"], 1, dense=True), "net", "net", "").weights))
    assert sizes[1] < sizes[0] / 4


def test_zeros_are_counted(tmp_path: Path) -> None:
    net = Net((8, 4, 4))
    net.outputs.append(net.conv("x0", 8, density=0.25))
    onnx.save(net.model(), tmp_path / "net.onnx")
    layout = lay_out(fuse(read(tmp_path / "net.onnx")))
    (counted,) = emit(layout, guess(layout, ["avx2"], 1), "net", "net", "").zeros.values()
    assert counted == (int((net.constants["w0"] == 0).sum()), 8 * 8 * 9)
    assert np.isclose(counted[0] / counted[1], 0.75, atol=0.05)
