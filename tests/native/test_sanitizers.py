"""Every kind of step, run by a C program under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest

from acdc_export import native
from acdc_export.native import INSTRUCTION_SETS, reference, toolchain
from acdc_export.native.emit import Source, emit
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layers import Network
from acdc_export.native.layout import Layout, lay_out
from acdc_export.native.plan import guess

from .conftest import HERE
from .networks import Net, parity

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("driver.c")
CHECKS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}


def everything() -> Net:
    """Every kind of step, with odd shapes: borders, phases, gates, groups, pools that jump, a border that is kept."""
    net = Net((5, 17, 13), (5, 17, 13), seed=2)
    a = net.point(net.function(net.conv("x0", 13, density=0.4), "Relu"))
    b = net.point(net.function(net.binary("Add", net.conv(a, 13, density=1.0), a), "Relu"))
    b = net.point(net.function(net.point(net.conv(b, 26, 3, groups=13, strides=2)), "HardSwish"))
    b = net.point(net.squeeze_excite(b))
    b = net.point(net.function(net.per_channel("Mul", net.point(net.batch_norm(b))), "Relu"))
    c = net.point(net.concat(b, net.point(net.conv(b, 3, 1, density=0.1)), b))
    c = net.point(net.pad(c, (1, 0), (2, 1), 0.5), same=c)
    c = net.point(net.pool(c, "AveragePool", (3, 2), (1, 2), (1, 0, 0, 1)))
    c = net.point(net.pool(c, "MaxPool", (2, 3), (3, 1), (0, 1, 1, 1)), same=c)
    d = net.point(net.pool("x1", "MaxPool", 1, (1, 11)), same="x1")
    d = net.point(net.binary("Sub", d, net.point(net.function(d, "Sigmoid"))))
    flat = net.point(net.flatten(c), same=c)
    net.outputs.append(net.node("Softmax", [net.gemm(flat, 37, 0.3)], (37,), axis=1))
    net.outputs.append(net.function(net.gemm(net.point(net.flatten(d), same=d), 5), "Tanh"))
    net.outputs.append(net.function(net.point(net.reshape(d, 17, 5, 2), same=d), "Identity"))
    return net


def plain() -> Net:
    """One dimension, single pixels, dense, and many outputs."""
    net = Net((7, 33))
    a = net.point(net.function(net.conv("x0", 40, 5, strides=3, dilations=2), "Relu"))
    a = net.point(net.function(net.point(net.conv(a, 19, 1)), "Gelu"))
    pooled = net.point(net.flatten(net.point(net.global_pool(a, "GlobalMaxPool"), same=a)))
    b = net.point(net.function(net.gemm(pooled, 70), "Relu"))
    net.outputs.append(net.gemm(b, 21, 0.2, bias=False))
    return net


@dataclass(frozen=True)
class Program:
    net: Net
    network: Network
    layout: Layout
    source: Source


def program(chosen: tuple[Callable[[], Net], bool, bool], sets: Sequence[str], folder: Path) -> Program:
    make, integer, dense = chosen
    net = make()
    onnx.save(net.quantized() if integer else net.model(), folder / "net.onnx")
    network = fuse(read(folder / "net.onnx"))
    layout = lay_out(network)
    return Program(net, network, layout, emit(layout, guess(layout, sets, 3, dense), "net", "net", ""))


PROGRAMS = [
    (make, integer, dense) for make in (everything, plain) for integer in (False, True) for dense in (False, True)
]


def test_every_kind_of_step_is_there(tmp_path: Path) -> None:
    listed = re.search(r"enum kind \{(.*?)KINDS", (resources.files(native) / "c" / "steps.h").read_text(), re.DOTALL)
    assert listed
    steps = [step for chosen in PROGRAMS for step in program(chosen, HERE, tmp_path).layout.steps]
    assert {step.kind for step in steps} == set(re.findall(r"\w+", listed[1]))


@pytest.mark.parametrize("check", CHECKS)
def test_clean(check: str, tmp_path: Path) -> None:
    """A program for each network; kernels are compiled once. Threads are the same with all instruction sets."""
    programs, sets = (PROGRAMS, HERE) if check == "address" else (PROGRAMS[1:4:2], HERE[:1])
    objects = {name: tmp_path / f"{name}.o" for name in sets}
    for at, chosen in enumerate(programs):
        folder = tmp_path / str(at)
        folder.mkdir()
        made = program(chosen, sets, folder)
        made.source.write(folder)
        for name, path in objects.items():
            if at == 0:
                (tmp_path / "kernels.c").write_text(made.source.kernels)
                number = f"-DSET={INSTRUCTION_SETS.index(name)}"
                _compile(check, tmp_path, number, *toolchain.MACHINE[name], "-c", "kernels.c", "-o", path)
        inputs = made.net.samples(3)
        expected = reference.run(made.network, inputs)
        whole = np.concatenate([expected[output].reshape(-1) for output in made.net.outputs])
        for name, values in inputs.items():
            (folder / name).write_bytes(values.tobytes())
        _compile(check, folder, "net.c", DRIVER, *objects.values(), "-I.", "-o", "program")
        for name in objects:
            environment = {**os.environ, "MODEL_INSTRUCTION_SET": name}
            command = ["./program", *inputs, "outputs"]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{chosen} {name}\n{done.stderr}"
            assert parity(np.fromfile(folder / "outputs", np.float32), whole) < 1e-4


def _compile(check: str, folder: Path, *arguments: object) -> None:
    flags = (*toolchain.FLAGS, "-O1", "-g", *CHECKS[check])
    subprocess.run([*toolchain.compiler(), *flags, *map(str, arguments)], cwd=folder, check=True)
