"""The command: two lines for a mistake, the right exit code, and nothing heavy before it is needed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from acdc_export import cli, resources
from acdc_export.pair import Pair

from .conftest import record


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "acdc_export", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def mistake(code: int, said: str, *arguments: object, cwd: Path | None = None, **variables: str) -> str:
    """Run a command that must end with `code` and an error of two lines or more, the first of them holding `said`."""
    done = run(*arguments, cwd=cwd, **variables)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert len(lines) >= 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_help_names_the_exit_codes_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\nsys.argv = ['acdc-export', '--help']\nfrom acdc_export.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'onnx', 'onnx_ir', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "4 inconclusive" in done.stdout
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize("verb", ["", "check", "inspect", "pipelines", "run", "targets", "train", "verify"])
def test_the_help_of_each_verb_has_examples_and_fits_80_columns(verb: str) -> None:
    shown = run(*verb.split(), "--help", COLUMNS="80").stdout
    examples = [line for line in shown.splitlines() if line.startswith(f"    acdc-export {verb}".rstrip() + " ")]
    assert 2 <= len(examples) <= 4
    assert max(map(len, shown.splitlines())) <= 80
    assert "\b" not in shown


def test_each_file_of_a_verb_is_found() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "output", "parsing", "export"}
    group: Any = typer.main.get_command(cli.app)
    assert set(group.commands) == files


@pytest.mark.parametrize("arguments", [(), ("targets",), ("pipelines",)])
def test_nothing_given_is_help_or_two_lines(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_version() -> None:
    from acdc_export.version import __version__

    assert run("--version").stdout == f"acdc-export {__version__}\n"


def test_an_unknown_option_is_usage() -> None:
    done = run("--targett", "cpu")
    assert done.returncode == 2
    assert "targett" in done.stderr


def test_an_unknown_target_names_the_nearest(pair: Pair) -> None:
    text = mistake(2, "Unknown target 'cpuu' (did you mean 'cpu'?)", "--pair", pair.path, "--target", "cpuu")
    assert "Built-in targets: cpu, native, onnxruntime, openvino" in text


def test_several_pairs_are_not_silently_one() -> None:
    mistake(2, "One run takes one pair.", "--target", "cpu", "--pair", "a", "--pair", "b")


def test_a_precision_that_is_not_on_offer(pair: Pair) -> None:
    mistake(2, "has no precision 'default'", "--pair", pair.path, "--target", "onnxruntime", "--precision", "default")


def test_options_before_a_command_are_not_forgotten() -> None:
    text = mistake(2, "--quiet stands before 'train'", "--quiet", "train", "digits")
    assert "train --quiet" in text


def test_all_mistakes_of_a_pipeline(tmp_path: Path) -> None:
    text = resources.find("pipelines", "digits").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("momentum", "momentun").replace("warmup = 3", "warmup = -3"))
    said = mistake(2, "mine.toml: 2 mistakes", "pipelines", "check", tmp_path / "mine.toml")
    assert "training.momentun: unknown key (did you mean 'momentum'?)" in said
    assert "schedule.warmup" in said


def test_all_that_a_pipeline_means_and_there_is_not(tmp_path: Path) -> None:
    text = resources.find("pipelines", "digits").read_text()
    for right, wrong in (
        ('"digits:train"', '"digits:trian"'),
        ("width", "wide"),
        ("[training]", "[training]\nepochs = 3"),
    ):
        assert right in text
        text = text.replace(right, wrong)
    (tmp_path / "mine.toml").write_text(text)
    said = mistake(2, "mine.toml: 3 mistakes", "pipelines", "check", tmp_path / "mine.toml")
    assert "data.train: 'digits:trian' names no part of digits (did you mean 'train'?)" in said
    assert "training.epochs: The schedule takes" in said
    assert "model: The model 'residual_cnn' can't be built: 'wide' is unknown (did you mean 'width'?)" in said


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_pipeline_whose_network_can_not_be_built_here(tmp_path: Path) -> None:
    done = run("pipelines", "check", "resnet50-imagenet-90")
    assert done.returncode == 0
    assert "no mistakes found in the file.\nIts network was not built. torchvision is not installed" in done.stdout
    said = mistake(3, "torchvision is not installed", "train", "resnet50-imagenet-90", "--dry-run", cwd=tmp_path)
    assert "pip install 'acdc-export[vision]'" in said


def test_a_missing_pair(tmp_path: Path) -> None:
    mistake(2, "There is no pair at", "--pair", tmp_path / "nowhere", "--target", "onnxruntime")


def test_a_half_written_pair(pair: Pair) -> None:
    (pair.path / "pair.json").unlink()
    mistake(2, "holds no pair.json", "--pair", pair.path, "--target", "onnxruntime")


def test_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    mistake(2, "is a checkpoint, not a pair", "--pair", tmp_path / "model.pt", "--target", "onnxruntime")


def test_a_license_without_a_terminal(pair: Pair, tmp_path: Path) -> None:
    said = mistake(
        3,
        "which has not been accepted",
        "--pair",
        pair.path,
        "--target",
        "cpu",
        cwd=tmp_path,
        ACDC_EXPORT_HOME=str(tmp_path / "home"),
        ACDC_EXPORT_ACCEPT_LICENSE="",
    )
    assert "--accept-license deepsparse" in said
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_library_is_imported_ends_with_130(tmp_path: Path, number: signal.Signals) -> None:
    # Libraries run strings while they are imported, where an interrupt is more to CPython than an exception.
    (tmp_path / "tomllib.py").write_text(
        f'exec("import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)")'
    )
    done = run("targets", "check", "cpu", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 130, done.stderr
    assert done.stderr == "Interrupted. What was there before is unchanged.\n"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"\x03", 130, "Interrupted. What was there before is unchanged."),
        (b"\x04", 130, "Interrupted. What was there before is unchanged."),
        (b"n\n", 3, "which has not been accepted.\r\n"),
    ],
)
def test_a_license_at_a_terminal(pair: Pair, tmp_path: Path, answer: bytes, code: int, said: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "acdc_export", "--pair", pair.path, "--target", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "ACDC_EXPORT_HOME": str(tmp_path / "home"), "ACDC_EXPORT_ACCEPT_LICENSE": ""},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # so that Ctrl-C is a signal
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 2)[0]:
                seen += os.read(ours, 4096)
            elif b"Do you accept this license? [y/N]: " in seen:
                os.write(ours, answer)  # after a while of silence, when it is surely waited for
    os.close(ours)
    assert process.wait(60) == code
    assert said in seen.decode()
    assert "Traceback" not in seen.decode()


def test_no_python_that_the_runtime_supports(pair: Pair, tmp_path: Path) -> None:
    mine = tmp_path / "mybox"
    resources.copy("targets", "onnxruntime", mine)
    text = (mine / "target.toml").read_text()
    (mine / "target.toml").write_text(text.replace(">=3.10,<3.15", ">=3.3,<3.4"))
    mistake(3, "3.3", "--pair", pair.path, "--target", mine, ACDC_EXPORT_HOME=str(tmp_path / "home"))


def test_no_network_while_the_environment_is_built(pair: Pair, tmp_path: Path) -> None:
    text = mistake(
        3,
        "onnxruntime",
        "--pair",
        pair.path,
        "--target",
        "onnxruntime",
        cwd=tmp_path,
        ACDC_EXPORT_HOME=str(tmp_path / "home"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1",
    )
    assert "repeat the command" in text
    assert not (tmp_path / "bundles").exists()


def test_too_many_threads(pair: Pair) -> None:
    mistake(
        2, "--threads 999", "--pair", pair.path, "--target", "onnxruntime", "--threads", 999, "--data", "digits:test"
    )


def test_errors_as_json(tmp_path: Path) -> None:
    done = run("--pair", tmp_path / "nowhere", "--target", "onnxruntime", "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["exit_code"] == 2
    assert "There is no pair" in document["error"]["message"]
    assert document["error"]["remedy"]


def test_lists_and_shows() -> None:
    names = [row["name"] for row in json.loads(run("targets", "list", "--json").stdout)]
    assert names == resources.names("targets")
    assert "digits" in run("pipelines", "list").stdout
    assert run("targets", "show", "cpu").stdout == (resources.find("targets", "cpu") / "target.toml").read_text()
    assert run("pipelines", "show", "digits").stdout == resources.find("pipelines", "digits").read_text()
    assert "no mistakes" in run("targets", "check", "cpu").stdout


def test_copies_are_used_by_path(tmp_path: Path) -> None:
    done = run("targets", "copy", "cpu", "mybox", cwd=tmp_path)
    assert "--target ./mybox" in done.stdout
    assert run("targets", "check", "./mybox", cwd=tmp_path).returncode == 0
    assert run("pipelines", "copy", "digits", "mine.toml", cwd=tmp_path).returncode == 0
    assert run("pipelines", "check", "mine.toml", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_inspect_a_pair_an_onnx_file_and_a_checkpoint(pair: Pair) -> None:
    text = run("inspect", pair.path).stdout
    assert "sparse half" in text
    assert "conv2.weight *" in text
    halves = json.loads(run("inspect", pair.path, "--json").stdout)["parts"]
    zeros = [half["weights"][1]["zeros"] for half in halves]
    assert zeros[0] == pair.record.pattern.layers["conv2.weight"].zeros
    assert zeros[1] == 0
    for file in ("sparse.onnx", "sparse.safetensors"):
        (part,) = json.loads(run("inspect", pair.path / file, "--json").stdout)["parts"]
        assert zeros[0] in [weight["zeros"] for weight in part["weights"]]


@pytest.mark.slow
def test_inspect_counts_the_groups_of_any_pattern(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(pattern=replace(record().pattern, kind="block8"))
    (weight, *_) = json.loads(run("inspect", pair.path / "sparse.onnx", "--json").stdout)["parts"][0]["weights"]
    assert list(weight["patterns"]) == ["2:4", "block4"]
    parts = json.loads(run("inspect", pair.path, "--pattern", "4:8", "--pattern", "block16", "--json").stdout)["parts"]
    weight = parts[0]["weights"][1]
    assert list(weight["patterns"]) == ["block8", "4:8", "block16"]  # its own first
    assert set(weight["patterns"]["4:8"]) == {"state", "conforming", "zero", "groups"}
    assert weight["patterns"]["4:8"]["groups"] == weight["total"] / 8
    said = run("inspect", pair.path, "--pattern", "4:8", COLUMNS="160").stdout
    assert "4:8 groups" in said
    assert "zero 1x8 blocks" in said
    assert "2:4" not in said
    mistake(2, "There is no pattern 'bloc8' (did you mean 'block4'?)", "inspect", pair.path, "--pattern", "bloc8")


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", b"hello"), ("cut.onnx", b"\x08\x0a\x12"), ("cut.safetensors", b"\x00" * 4)]
)
def test_inspect_refuses_the_rest(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    mistake(2, name, "inspect", tmp_path / name)


def test_data_that_do_not_fit_are_told_before_anything_is_built(pair: Pair, tmp_path: Path) -> None:
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((4, 1, 8, 8), dtype=np.float32))
    mistake(
        2, "unlabelled.npz", "--pair", pair.path, "--target", "onnxruntime", "--data", tmp_path / "unlabelled.npz",
        ACDC_EXPORT_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert not (tmp_path / "home").exists()


def test_verify_of_nothing(tmp_path: Path) -> None:
    mistake(2, "There is no bundle at", "verify", tmp_path / "nowhere")


@pytest.mark.slow
def test_a_place_that_is_taken_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "thesis.tex").write_text("years of work")
    mistake(2, "not a folder of ours", "train", "digits", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]
    (tmp_path / "file").write_text("")
    mistake(2, "File exists", "train", "digits", "--runs", "file", cwd=tmp_path)
    (tmp_path / "bundles" / "digits-cpu").mkdir(parents=True)
    (tmp_path / "bundles" / "digits-cpu" / "cat.jpg").write_text("cat")
    mistake(2, "not a folder of ours", "run", "digits", cwd=tmp_path, ACDC_EXPORT_HOME=str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


@pytest.mark.train
@pytest.mark.slow
def test_a_dry_run_takes_a_step_in_each_phase_and_keeps_nothing(tmp_path: Path) -> None:
    done = run("train", "digits", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [kind for kind, _ in found["steps"]] == [*["dense", "sparse"] * 5, "twin"]
    assert found["left_dense"] == {"stem.0": "excluded by 'stem.*'", "head": "excluded by 'head'"}
    assert list(tmp_path.iterdir()) == []
    said = run("train", "digits", "--dry-run", "--quiet", cwd=tmp_path).stdout
    assert "layers are pruned: 90.00 % zeros" in said
    assert "Both halves were exported, and nothing was kept." in said


def test_inspecting_a_pair_tells_how_it_was_trained(pair: Pair, tmp_path: Path) -> None:
    picture = tmp_path / "run.svg"
    said = run("inspect", pair.path, "--picture", picture)
    assert "Training, at the end of each phase" in said.stdout
    assert picture.read_text().startswith("<svg")
    mistake(2, "doesn't say how it was trained", "inspect", pair.path / "sparse.onnx", "--picture", picture)


def test_inspecting_a_pair_of_unknown_training_says_so(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    pair = make_pair(history=None)
    said = run("inspect", pair.path)
    assert said.returncode == 0
    assert "Nothing is known of how it was trained." in said.stdout
    assert json.loads(run("inspect", pair.path, "--json").stdout)["training"]["history"] is None
    mistake(2, "doesn't say how it was trained", "inspect", pair.path, "--picture", tmp_path / "run.svg")
