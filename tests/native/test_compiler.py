"""From an ONNX file to the files of a library: all of them, or none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from acdc_export.errors import GraphError, OutputError, RuntimeUnavailable, UsageError
from acdc_export.native import INSTRUCTION_SETS, CompilerMissing, Library, compile, toolchain

from .conftest import HERE
from .networks import Net, parity, run

SUFFIXES = (".so", ".h", ".c", ".weights", ".plan.json")


def network(outputs: int = 16, density: float = 0.3) -> Net:
    net = Net((3, 9, 9))
    net.outputs.append(net.gemm(net.flatten(net.function(net.conv("x0", outputs, density=density), "Relu")), 5))
    return net


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(network().model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "net"


def written(stem: Path) -> set[str]:
    return {path.name.removeprefix(stem.name) for path in stem.parent.iterdir()}


def test_what_is_written(model: Path, out: Path) -> None:
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    assert written(out) == set(SUFFIXES)
    net = network()
    x = net.samples(2)
    with Library(compiled.library) as library:
        assert library.instruction_sets == HERE[:1]
        assert parity(library.run(x)[net.outputs[0]], run(net.model(), x)[0]) < 1e-4


def test_a_measured_plan_makes_the_same_library_again(model: Path, out: Path) -> None:
    first = compile(model, out, threads=2, instruction_sets=HERE[:2])
    plan = json.loads(first.plan.read_text())
    assert plan["measured_on"] == HERE[0]
    assert [(layer["name"], layer["weights"]) for layer in plan["layers"]] == [("Conv_t0", 432), ("Gemm_t3", 6480)]
    kept = first.library.read_bytes(), first.plan.read_bytes()
    again = compile(model, out, plan=first.plan)  # of the plan's sets, whatever is asked for
    assert (again.library.read_bytes(), again.plan.read_bytes()) == kept


def test_it_needs_libc_only(model: Path, out: Path) -> None:
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    listing = subprocess.run(["readelf", "-d", compiled.library], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in listing.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}
    symbols = subprocess.run(["nm", "-D", "--defined-only", compiled.library], capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines() if not line.split()[-1].startswith("model_")} == set()


def test_the_c_file_alone_makes_the_library(model: Path, out: Path) -> None:
    """As its first comment says: whoever has the C file needs neither Python nor us."""
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    flags = toolchain.MACHINE[HERE[0]]
    for name, more in (("common.o", ()), ("kernels.o", (f"-DSET={INSTRUCTION_SETS.index(HERE[0])}", *flags))):
        command = [
            "cc",
            "-std=gnu11",
            "-O1",
            "-fPIC",
            "-ffp-contract=off",
            *more,
            "-c",
            compiled.program.name,
            "-o",
            name,
        ]
        subprocess.run(command, cwd=out.parent, check=True)
    subprocess.run(["cc", "-shared", "common.o", "kernels.o", "-o", "own.so"], cwd=out.parent, check=True)
    net = network()
    x = net.samples(2)
    with Library(compiled.library) as ours, Library(out.parent / "own.so") as own:
        assert parity(own.run(x)[net.outputs[0]], ours.run(x)[net.outputs[0]]) < 1e-6


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_without_a_compiler(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match="There is no C compiler.*\n.*apt install gcc, or pip install ziglang"):
        compile(model, out)
    assert written(out) == set()


def test_a_compiler_that_is_not_there(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("/nowhere/gcc -m64", "   ", "'"):
        monkeypatch.setenv("CC", named)
        with pytest.raises(CompilerMissing):
            compile(model, out)
    assert written(out) == set()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'x.c:3:4: error: what is this' >&2; exit 1", "x.c:3:4: error: what is this"),
        ("exit 3", "exit code 3"),
        ("exec no-such-program", "exit code 127"),
    ],
)
def test_a_compiler_that_fails(script: str, said: str, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile(model, out, instruction_sets=HERE[:1], tune=False)
    onnx.save(network(24).model(), model)  # another one now
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    compiler = model.with_name("compiler")
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(RuntimeUnavailable, match="The C compiler compiler failed") as raised:
        compile(model, out, instruction_sets=HERE[:1], tune=False)
    assert said in raised.value.message
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before  # nothing is half-written


def test_a_compiler_that_can_not_be_started(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = model.with_name("compiler")
    compiler.write_bytes(b"\x7fELF nonsense")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(CompilerMissing, match="can't be started"):
        compile(model, out, instruction_sets=HERE[:1], tune=False)
    assert written(out) == set()


def test_a_graph_that_can_not_be_compiled_leaves_nothing(model: Path, out: Path) -> None:
    net = network()
    net.outputs = [net.function(net.outputs[0], "Sinh")]
    onnx.save(net.model(), model)
    with pytest.raises(GraphError):
        compile(model, out)
    assert written(out) == set()


def test_places_that_can_not_be(model: Path, out: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        compile(model, out.parent / "missing" / "net", tune=False, instruction_sets=HERE[:1])
    (out.parent / "net.weights").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        compile(model, out)
    for name in ('a"b', "a\nb", "a\\b", ""):
        with pytest.raises(UsageError, match="can't be a name of C files"):
            compile(model, Path("/") if not name else out.parent / name)


@pytest.mark.parametrize("name", ["-o", "with blank", "größe", "a'b", "$(id)", "a;b", "%s"])
def test_odd_names(name: str, model: Path, out: Path) -> None:
    compiled = compile(model, out.parent / name, instruction_sets=HERE[:1], tune=False)
    with Library(compiled.library) as library:
        assert library.title == name


def test_what_is_asked_for_wrongly(model: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="'sse2' is not known"):
        compile(model, out, instruction_sets=("avx2", "sse2"))
    with pytest.raises(UsageError, match="No instruction set"):
        compile(model, out, instruction_sets=())
    for threads in (-1, 1025):
        with pytest.raises(UsageError, match=f"{threads} threads"):
            compile(model, out, threads=threads)


def test_instruction_sets_are_ordered_and_told_once(model: Path, out: Path) -> None:
    asked = (HERE[-1], HERE[0], HERE[-1])
    compiled = compile(model, out, instruction_sets=asked, tune=False)
    with Library(compiled.library) as library:
        assert library.instruction_sets == tuple(dict.fromkeys((HERE[0], HERE[-1])))


# ------------------------------------------------------------------------------------------------------------ plans


def broken_plans(good: dict[str, object]) -> dict[str, str]:
    """Texts of plans that must not be used."""

    def with_choice(**changes: object) -> str:
        changed = json.loads(json.dumps(good))
        (first, *_) = changed["choices"].values()
        for tiling in first["tilings"].values():
            tiling.update({key: value for key, value in changes.items() if key != "kernel"})
        first["kernel"] = changes.get("kernel", first["kernel"])
        return json.dumps(changed)

    return {
        "empty": "",
        "no JSON": "{",
        "a list": "[]",
        "nothing": "null",
        "another schema": json.dumps({**good, "schema": 99}),
        "no choices": json.dumps({**good, "choices": {}}),
        "choices of other steps": json.dumps({**good, "choices": {"0": {}, "7": {}}}),
        "unknown set": json.dumps({**good, "instruction_sets": ["sse2"]}),
        "sets that are no list": json.dumps({**good, "instruction_sets": 5}),
        "no sets": json.dumps({**good, "instruction_sets": []}),
        "a tile of none": with_choice(tile=0),
        "a large tile": with_choice(tile=9),
        "a negative tile": with_choice(tile=-1),
        "no pieces": with_choice(pixel_pieces=0),
        "many pieces": with_choice(channel_pieces=10**9),
        "half a piece": with_choice(pixel_pieces=1.5),
        "text": with_choice(tile="3"),
        "true": with_choice(pixel_pieces=True),
        "another kernel": with_choice(kernel=7),
        "a kernel for single pixels": with_choice(kernel=2),
        "a kernel that is half": with_choice(kernel=0.5),
        "more of a tiling": with_choice(more=1),
        "infinite": with_choice(tile=float("inf")),
        "not UTF-8": "\udcff",
    }


def test_plans_that_are_broken_or_of_others(model: Path, out: Path) -> None:
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    path = model.with_name("other.plan.json")
    for what, text in broken_plans(json.loads(compiled.plan.read_text())).items():
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(GraphError):
            compile(model, out, plan=path)
            pytest.fail(f"a plan with {what} was used")
    with pytest.raises(GraphError, match="No such file"):
        compile(model, out, plan=model.with_name("missing.json"))
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


def test_a_plan_of_another_network(model: Path, out: Path) -> None:
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    onnx.save(network(24).model(), model)
    with pytest.raises(GraphError, match="is a plan of another network"):
        compile(model, out.with_name("net2"), plan=compiled.plan)


def test_more_pieces_than_there_is_work(model: Path, out: Path) -> None:
    compiled = compile(model, out, instruction_sets=HERE[:1], tune=False)
    plan = json.loads(compiled.plan.read_text())
    for choice in plan["choices"].values():
        for tiling in choice["tilings"].values():
            tiling |= {"pixel_pieces": 64, "channel_pieces": 64}
    compiled.plan.write_text(json.dumps(plan))
    again = compile(model, out, plan=compiled.plan)
    net = network()
    x = net.samples(3)
    with Library(again.library, threads=3) as library:
        np.testing.assert_allclose(library.run(x)[net.outputs[0]], run(net.model(), x)[0], 1e-4, 1e-5)
