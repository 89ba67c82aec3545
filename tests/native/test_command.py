"""`python -m acdc_export.native`, and the examples that go on from what it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import acdc_export
from acdc_export.native.__main__ import main

from .conftest import HERE
from .networks import Net, parity, run

ROOT = Path(acdc_export.__file__).parents[1]
EXAMPLES = ROOT / "examples" / "native"
QUICK = ["--no-tune", "--instruction-set", HERE[0]]


def network() -> Net:
    net = Net((3, 6, 5))
    x = net.point(net.function(net.conv("x0", 16, density=0.2), "Relu"))
    net.outputs.append(net.gemm(net.point(net.flatten(net.point(net.global_pool(x)))), 4))
    return net


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network().model(), "model.onnx")


def test_what_it_writes_and_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = ["model.so", "model.h", "model.c", "model.weights", "model.plan.json"]
    assert [re.split(r"  +", line)[0] for line in lines[:5]] == files
    assert all(re.search(r"\d (B|kB|MB)$", line) for line in lines[:5])
    assert re.fullmatch(r"Layers with weights: 1 sparse, 1 dense; \d+\.\d% of the weights are zero\.", lines[5])
    assert lines[6] == f"Instruction sets: {HERE[0]}. Kernels: chosen by rules."
    assert sorted(path.name for path in Path().iterdir()) == sorted(["model.onnx", *files])


def test_a_place_a_plan_and_measured_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert main(["model.onnx", "--out", "out/net", "--threads", "1", "--instruction-set", *HERE[:2]]) == 0
    said = capsys.readouterr().out
    assert f"Instruction sets: {', '.join(HERE[:2])}. Kernels: measured on {HERE[0]} with 1 thread." in said
    first = (tmp_path / "out" / "net.so").read_bytes()
    assert main(["model.onnx", "--out", "out/net", "--plan", "out/net.plan.json"]) == 0
    assert (tmp_path / "out" / "net.so").read_bytes() == first


def test_layers_of_an_integer_network_that_stay_fp32(capsys: pytest.CaptureFixture[str]) -> None:
    net = network()
    net.outputs = [net.node("Softmax", net.outputs, (4,))]
    onnx.save(net.quantized(), "model.onnx")
    assert main(["model.onnx", *QUICK]) == 0
    assert "\nIn FP32: Softmax_t5.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.onnx"], 2, "missing.onnx: No such file or directory.\nName an ONNX file."),
        (["model.onnx", "--out", "missing/net"], 2, "missing/net.so can't be written: No such file or directory."),
        (["model.onnx", "--threads", "-2"], 2, "-2 threads are asked for.\n"),
        (["model.onnx", "--instruction-set", "sse2"], 2, "The instruction set 'sse2' is not known.\n"),
        (["model.onnx", "--plan", "model.onnx"], 2, "model.onnx is not a plan: "),
    ],
)
def test_errors_are_two_lines(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--no-tune"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert len(captured.err.splitlines()) == 2


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert main(["model.onnx"]) == 3
    assert "no-such-compiler" in capsys.readouterr().err


def test_usage_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["--nonsense"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == code
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for option in ("--out", "--threads", "--instruction-set", "--plan", "--no-tune"):
        assert option in text


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "acdc_export.native", "missing.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("missing.onnx: ")


# --------------------------------------------------------------------------------------------------------- examples


def test_the_example_in_c(tmp_path: Path) -> None:
    """As its first comment says it is compiled and run."""
    (tmp_path / "main.c").write_text((EXAMPLES / "main.c").read_text())
    comment = (tmp_path / "main.c").read_text().partition("*/")[0]
    python, compiling, running = re.findall(r"^ {7}(\S.*)$", comment, re.MULTILINE)
    assert python == "python -m acdc_export.native model.onnx"
    assert main(["model.onnx", *QUICK]) == 0
    subprocess.run(f"{compiling} -Wall -Wextra -Werror", shell=True, check=True)
    x = network().samples()
    np.savetxt("sample.txt", x["x0"].reshape(-1))
    done = subprocess.run(running, shell=True, capture_output=True, text=True, check=True)
    name, *values = done.stdout.split()
    assert name == network().outputs[0]
    assert parity(np.array(values, np.float32), run(network().model(), x)[0].reshape(-1)) < 1e-4
    (tmp_path / "sample.txt").write_text("1 2 3")
    done = subprocess.run(running, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "main: stdin has fewer values than the inputs\n")


def test_the_example_in_python(tmp_path: Path) -> None:
    """It needs numpy, and nothing of ours."""
    text = (EXAMPLES / "infer.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {"ctypes", "sys", "numpy"}
    assert main(["model.onnx", *QUICK]) == 0
    x = network().samples(3)
    np.savez("inputs.npz", **x)
    command = [sys.executable, EXAMPLES / "infer.py", "./model.so", "inputs.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values = done.stdout.partition(") ")[2].split()
    assert done.stdout.startswith(f"{network().outputs[0]} (3, 4) ")
    assert parity(np.array(values, np.float32), run(network().model(), x)[0].reshape(-1)) < 1e-4
    np.savez("inputs.npz", x0=x["x0"][:, :, :, :4])
    done = subprocess.run(command, capture_output=True, text=True)
    assert "x0 has shape (3, 3, 6, 4), not (3, 3, 6, 5)" in done.stderr
