"""The whole way with real runtimes: a pair made by hand, DeepSparse, ONNX Runtime, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from acdc_export import export, resources, verify
from acdc_export.bundle import Bundle
from acdc_export.config import load_target
from acdc_export.errors import UsageError
from acdc_export.pair import Pair

from .test_cli import mistake, run

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        "deepsparse" not in os.environ.get("ACDC_EXPORT_ACCEPT_LICENSE", ""),
        reason="DeepSparse's license is not accepted: ACDC_EXPORT_ACCEPT_LICENSE=deepsparse",
    ),
]

PIPELINE = resources.find("pipelines", "digits").read_text()


def quick_target(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """A copy of a built-in target that is measured for a moment only; returns its path for --target."""
    if not folder.exists():
        resources.copy("targets", name, folder)
    text = (folder / "target.toml").read_text()
    text = text.replace("[benchmark]\n", "[benchmark]\nbudget = 5\n", 1)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "target.toml").write_text(text)
    return str(folder)


@pytest.fixture
def cpu(tmp_path: Path) -> str:
    return quick_target(tmp_path / "targets" / "cpu", "cpu")


@pytest.fixture
def control(tmp_path: Path) -> str:
    return quick_target(tmp_path / "targets" / "onnxruntime", "onnxruntime")


def processes(word: str) -> list[int]:
    """The processes whose command line holds `word`, but for this one."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                if word in (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(path.name))
            except OSError:
                continue
    return found


def kill_workers(process: subprocess.Popen[str], target: str) -> None:
    """Kill what the command has started for `target`, until it ends."""
    while process.poll() is None:  # a worker may just be ending by itself
        for worker in processes(target):
            if worker != process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        time.sleep(0.1)


def wait_for(what: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    pytest.fail("it never came")


def test_both_halves_in_deepsparse(pair: Pair, cpu: str, labelled: Path, tmp_path: Path) -> None:
    bundle = export(pair, cpu, data=str(labelled), out=tmp_path / "bundles")
    report = bundle.report
    assert bundle.path == tmp_path / "bundles" / "tiny-cpu"
    assert bundle.damage() == []
    assert report.target.runtime == "deepsparse"
    assert report.target.version == "1.8.0"
    assert report.target.deployable is False
    assert report.target.locked["deepsparse"] == "1.8.0"
    assert report.structure.supported_ops == 1.0
    assert report.structure.zeros == pair.record.pattern.layers["conv2.weight"].zeros
    assert [step.name for step in report.structure.steps][1:] == list(load_target(cpu).graph.passes)
    assert len({step.zeros for step in report.structure.steps}) == 1
    assert all(half.ok and half.required < 1e-4 for halves in report.parity.values() for half in halves.values())
    assert report.accuracy is not None
    assert report.accuracy.dense.value == 100.0  # its own answers are the labels
    assert report.accuracy.sparse.value < 100.0
    assert [(workload.batch_size, workload.threads) for workload in report.latency] == [
        (16, len(report.machine.cpus)),
        (1, 2),
    ]
    assert set(report.latency[0].variants) == {"sparse", "dense", "dense@onnxruntime", "dense@openvino-default"}
    assert all(seconds > 0 for halves in report.loading.values() for seconds in halves.values())
    assert {gate.gate for gate in report.gates} >= {"speedup >= 1.0", "supported_ops >= 1.0", "parity <= 0.001"}
    assert (bundle.path / "report.md").read_text().startswith("# tiny on cpu")
    assert sorted(path.name for path in (bundle.path / "model").iterdir()) == ["model-b1.onnx", "model-b16.onnx"]
    samples = np.load(bundle.path / "evidence" / "samples.npz")
    assert samples["b16t2.sparse.0"].dtype == np.int64

    checked = verify(bundle.path, target=cpu)
    assert checked.exit_code == report.exit_code  # a bundle that failed its gates doesn't pass
    assert all(check.status == "pass" for check in checked.checks if check.gate != "gates, when it was made")
    assert [check.gate for check in checked.checks] == [
        "files",
        "gates, when it was made",
        "golden outputs, batch 1",
        "golden outputs, batch 16",
        "supported_ops",
    ]
    model = bundle.path / "model" / "model-b16.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    assert verify(bundle.path, target=cpu).exit_code == 1


@pytest.mark.slow
def test_a_fallback_is_caught_and_the_operator_named(pair: Pair, labelled: Path, tmp_path: Path) -> None:
    """Without this pass DeepSparse loads the graph, gives the right answers, and says nothing."""
    target = quick_target(
        tmp_path / "mybox", "cpu", ('    "global_average_pool",', ""), ('"onnxruntime", "openvino"', "")
    )
    done = run("--pair", pair.path, "--target", target, "--data", labelled, "--batch-size", 16, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "supported_ops >= 1.0" in done.stdout
    assert "Not on the engine's fast path: ReduceMean." in done.stdout
    report = Bundle.load(tmp_path / "bundles" / "tiny-mybox").report
    assert report.structure.unsupported == ("ReduceMean",)


@pytest.mark.slow
def test_onnxruntime_takes_one_file_for_all_batch_sizes(
    pair: Pair, control: str, labelled: Path, tmp_path: Path
) -> None:
    bundle = export(pair, control, data=str(labelled), batch_sizes=[3], out=tmp_path / "bundles")
    assert [path.name for path in (bundle.path / "model").iterdir()] == ["model.onnx"]
    assert [workload.batch_size for workload in bundle.report.latency] == [
        16,
        3,
    ]  # the gated one is always measured, and first
    checked = verify(bundle.path)
    assert [check.status for check in checked.checks if check.gate.startswith("golden")] == ["pass", "pass"]
    assert "defined otherwise" in " ".join(checked.notes)  # the built-in target has other [benchmark] settings


def test_verify_runs_no_code_that_a_bundle_names(pair: Pair, control: str, labelled: Path, tmp_path: Path) -> None:
    bundle = export(pair, control, data=str(labelled), batch_sizes=[16], out=tmp_path / "bundles")
    document = json.loads((bundle.path / "manifest.json").read_text())
    trap = tmp_path / "trap"
    resources.copy("targets", "onnxruntime", trap)
    (trap / "engine.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    (bundle.path / "manifest.json").write_text(json.dumps({**document, "target": str(trap)}))
    with pytest.raises(UsageError, match="which is not a built-in one"):
        verify(bundle.path)
    assert not (tmp_path / "pwned").exists()


def test_a_control_that_can_not_be_measured_is_not_beaten(pair: Pair, labelled: Path, tmp_path: Path) -> None:
    broken = quick_target(tmp_path / "targets" / "broken", "onnxruntime")
    engine = Path(broken) / "engine.py"
    engine.write_text(engine.read_text() + "\n\ndef load(*_):\n    raise ValueError('no')\n")
    target = quick_target(
        tmp_path / "targets" / "onnxruntime", "onnxruntime",
        ("[runtime]", 'gates = ["speedup.vs_control >= 0.01"]\n\n[runtime]'),
        ("[benchmark]\n", f'[benchmark]\ncontrols = ["{broken}"]\n'),
    )  # fmt: skip
    report = export(pair, target, data=str(labelled), batch_sizes=[16], out=tmp_path / "bundles").report
    assert {gate.gate: gate.status for gate in report.gates}["speedup.vs_control >= 0.01"] == "not measured"
    assert "The control broken was not measured" in " ".join(report.notes)


def test_a_deployable_engine_is_asked_for(pair: Pair, labelled: Path, tmp_path: Path) -> None:
    target = quick_target(tmp_path / "mybox", "cpu", ("[1, 16]", "[16]"), ('"onnxruntime", "openvino"', ""))
    bundle = export(pair, target, data=str(labelled), out=tmp_path / "bundles", require_deployable=True)
    assert bundle.report.exit_code == 1
    assert [gate.status for gate in bundle.report.gates if gate.gate == "deployable"] == ["fail"]


def test_what_can_not_be_measured_is_not_green(pair: Pair, control: str, tmp_path: Path) -> None:
    done = run("--pair", pair.path, "--target", control, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    verdicts = {gate["gate"]: gate["status"] for gate in report["gates"]}
    assert verdicts["accuracy.drop <= 1.0"] == "not measured"
    assert done.returncode == report["exit_code"]
    assert done.returncode in (1, 3)  # 1 where the speed-up gate happens to fail as well
    assert "names no data" in " ".join(report["notes"])


def test_code_named_by_somebody_elses_pair_is_not_run(
    make_pair: Callable[..., Pair], control: str, tmp_path: Path
) -> None:
    pipeline = PIPELINE.replace('"digits:test"', '"antigravity:fly"')
    with pytest.raises(UsageError, match="antigravity:fly"):
        export(make_pair(pipeline=pipeline), control, out=tmp_path / "bundles")


@pytest.mark.slow
def test_weights_that_only_the_onnx_holds_are_checked(pair: Pair, control: str, labelled: Path, tmp_path: Path) -> None:
    """`Pair.load` reads the state dicts, but the ONNX is what is deployed."""
    import onnx
    from onnx import numpy_helper

    from .pair.test_store import rehash

    model = onnx.load(pair.onnx("sparse"))
    weight = next(one for one in model.graph.initializer if one.name == "conv2.weight")
    array = numpy_helper.to_array(weight).copy()
    for change, said in ((np.nan, "holds NaN"), (1.0, "has 0 zeros, but pair.json says"), (0.0, "is zero throughout")):
        array[...] = change
        weight.CopyFrom(numpy_helper.from_array(array, "conv2.weight"))
        onnx.save(model, pair.onnx("sparse"))
        rehash(pair.path)
        mistake(
            2, f"sparse.onnx: conv2.weight {said}", "--pair", pair.path, "--target", control, "--data", labelled,
            "--quiet", cwd=tmp_path,
        )  # fmt: skip


def test_an_engine_of_ones_own_that_gives_other_outputs(
    pair: Pair, control: str, labelled: Path, tmp_path: Path
) -> None:
    engine = Path(control) / "engine.py"
    text = engine.read_text()
    engine.write_text(text + "\n\nreal = load\n\n\ndef load(*given):\n    model = real(*given)\n"
                      "    run = model.run\n    model.run = lambda inputs: {'foo': list(run(inputs).values())[0]}\n"
                      "    return model\n")  # fmt: skip
    mistake(
        3,
        "gives foo, not logits",
        "--pair",
        pair.path,
        "--target",
        control,
        "--data",
        labelled,
        "--quiet",
        cwd=tmp_path,
    )


def test_data_of_another_shape(pair: Pair, control: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 1, 8, 9), dtype=np.float32), y=np.zeros(4, dtype=np.int64))
    said = mistake(
        2, "gives input as float32 (4, 1, 8, 9); the network takes float32 (batch, 1, 8, 8)",
        "--pair", pair.path, "--target", control, "--data", tmp_path / "wide.npz", "--quiet", cwd=tmp_path,
    )  # fmt: skip
    assert "as for training" in said
    assert not list((tmp_path / "bundles").iterdir())


def test_a_truncated_model_with_fitting_hashes(pair: Pair, control: str, labelled: Path, tmp_path: Path) -> None:
    from .pair.test_store import rehash, truncate

    truncate(pair.path / "sparse.onnx")
    rehash(pair.path)
    mistake(
        2, "sparse.onnx can't be read as ONNX", "--pair", pair.path, "--target", control, "--data", labelled, "--quiet",
        cwd=tmp_path,
    )  # fmt: skip


@pytest.fixture
def going(pair: Pair, tmp_path: Path, labelled: Path) -> Iterator[subprocess.Popen[str]]:
    """An export that measures for a long time, over an older bundle; yielded once its workers run."""
    target = quick_target(tmp_path / "targets" / "slow", "onnxruntime", ("budget = 5", "budget = 600"))
    older = tmp_path / "bundles" / "tiny-slow"
    older.mkdir(parents=True)
    (older / "manifest.json").write_text("older")
    process = subprocess.Popen(
        [sys.executable, "-m", "acdc_export", "--pair", pair.path, "--target", target, "--data", labelled],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(processes(target)) == 3)  # the command and both variants of the latency measurement
    yield process
    process.kill()
    process.communicate()
    wait_for(lambda: not processes(target))
    assert (older / "manifest.json").read_text() == "older"


def ended(process: subprocess.Popen[str], tmp_path: Path) -> str:
    """What it said; nothing of it may be left but the older bundle."""
    _, said = process.communicate(timeout=60)
    assert not processes(str(tmp_path / "targets" / "slow"))
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["tiny-slow"]
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_loses_nothing(going: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    time.sleep(0.5)
    going.send_signal(number)
    assert "Interrupted. What was there before is unchanged." in ended(going, tmp_path)
    assert going.returncode == 130


@pytest.mark.slow
def test_an_engine_killed_midway_is_not_measured(pair: Pair, labelled: Path, tmp_path: Path) -> None:
    """What was measured until then is kept, and is no evidence."""
    target = quick_target(tmp_path / "targets" / "slow", "onnxruntime", ("budget = 5", "budget = 40"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "acdc_export", "--pair", pair.path, "--target", target, "--data", labelled),
            *("--gate", "speedup >= 0.01"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # Some launches of the batch size that gates judge are over, since it comes first; its gates are not looked at until
    # half of its budget is spent, which is a third of the whole.
    for line in process.stderr:
        if line.startswith("latency: 25 %"):
            break
    kill_workers(process, target)
    said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "NOT MEASURED" in said
    assert "SIGKILL" in said
    bundle = Bundle.load(tmp_path / "bundles" / "tiny-slow")
    latency = bundle.report.latency[0]
    assert latency.failure is not None
    assert not latency.ratios
    with np.load(bundle.path / "evidence" / "samples.npz") as samples:
        assert len(samples["b16t2.sparse.0"]) > 0


def test_a_killed_command_leaves_no_process(going: subprocess.Popen[str], tmp_path: Path) -> None:
    going.kill()
    going.wait()
    wait_for(lambda: not processes(str(tmp_path / "targets" / "slow")))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline like digits, but far smaller, that goes to a quick ONNX Runtime."""
    folder = tmp_path_factory.mktemp("small")
    target = quick_target(folder / "targets" / "onnxruntime", "onnxruntime")
    reader = "def test():\n    print('read')\n    return load('digits:test').batches(64)\n"
    (folder / "mydata.py").write_text(f"from acdc_export.data import load\n\n\n{reader}")
    text = (
        PIPELINE.replace('name = "digits"', 'name = "small"')
        .replace('"digits:test"', '"mydata:test"')
        .replace('targets = ["cpu"]', f'targets = ["{target}"]')
    )
    text = text.replace("width = 64, blocks = 2", "width = 8, blocks = 1").replace("cycles = 3", "cycles = 0")
    for phase in ("warmup", "last_sparse", "last_dense", "final_sparse"):
        text = "\n".join(f"{phase} = 1" if line.startswith(f"{phase} = ") else line for line in text.splitlines())
    (folder / "small.toml").write_text(text.replace("speedup >= 1.3", "speedup >= 0.01"))
    return folder


@pytest.fixture(scope="module")
def first_run(small: Path) -> subprocess.CompletedProcess[str]:
    """That pipeline, run for the first time."""
    return run("run", "small.toml", "--json", "--budget", 4, cwd=small)


@pytest.mark.train
def test_a_pipeline_from_training_to_verdict(small: Path, first_run: subprocess.CompletedProcess[str]) -> None:
    report = json.loads(first_run.stdout)  # whatever the user's own code prints
    assert "read" in first_run.stderr
    assert report["pair"]["name"] == "small"
    assert report["accuracy"]["samples"] == 898
    assert report["measured"]["sparsity"]["value"] >= 0.9
    assert {gate["gate"] for gate in report["gates"]} == {
        "sparsity >= 0.9", "accuracy.drop <= 2.0", "speedup >= 0.01", "parity <= 0.001",
    }  # fmt: skip
    assert first_run.returncode == report["exit_code"]
    pair = Pair.load(small / "runs" / "small")
    assert pair.record.pipeline == (small / "small.toml").read_text()


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.usefixtures("first_run")
def test_the_pair_of_a_pipeline_is_reused_while_it_is_its_own(small: Path) -> None:
    pair = Pair.load(small / "runs" / "small")
    again = run("run", "small.toml", "--budget", 4, cwd=small)
    assert "Reusing the pair runs/small" in again.stderr
    assert Pair.load(small / "runs" / "small").record == pair.record
    text = (small / "small.toml").read_text()
    (small / "small.toml").write_text(text.replace("speedup >= 0.01", "speedup >= 1e6"))
    judged = run("run", "small.toml", "--json", "--budget", 8, cwd=small)  # a gate that changed needs no new pair
    assert judged.returncode == 1
    assert "speedup >= 1e6" in judged.stdout
    assert Pair.load(small / "runs" / "small").record == pair.record

    (small / "small.toml").write_text(text.replace("seed = 0", "seed = 1"))
    said = mistake(2, "was not trained as the pipeline small says now", "run", "small.toml", "--quiet", cwd=small)
    assert "--pair runs/small" in said
    assert Pair.load(small / "runs" / "small").record == pair.record


@pytest.mark.train
@pytest.mark.slow
def test_an_interrupted_training_leaves_nothing_but_where_it_was(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "acdc_export", "train", "digits"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "runs" / "digits.checkpoint"
    wait_for(checkpoint.exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on from runs/digits.checkpoint." in said
    assert said.strip().endswith("Interrupted. What was there before is unchanged.")
    assert list((tmp_path / "runs").iterdir()) == [checkpoint]
    changed = tmp_path / "digits.toml"
    changed.write_text(PIPELINE.replace("learning_rate = 0.1", "learning_rate = 0.2"))
    mistake(2, "another [model], [data], [training] or seed", "train", changed, cwd=tmp_path)
