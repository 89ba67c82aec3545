"""`check` with real runtimes: a bundle beside an older one, itself and stored ratios, and what goes wrong there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc_export import export
from acdc_export.bundle import Bundle
from acdc_export.checking import baseline
from acdc_export.checking.baseline import Entry, MachineClass, Stored
from acdc_export.errors import BaselineError, UsageError
from acdc_export.evidence.gates import Measurement
from acdc_export.files import fingerprints, renamed
from acdc_export.pair import Pair
from acdc_export.workflow import check
from benchmarks.seeded import slowed

from .test_cli import mistake, run
from .test_workflow import kill_workers, quick_target

pytestmark = pytest.mark.runtime

LOOSE = ("latency.p50.ratio <= 1000",)  # for what is not about time: a moment of measuring decides it


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def bundle(kept: Path, pair: Pair, labelled: Path) -> Path:
    """A bundle for the built-in target `onnxruntime`, made once."""
    path = kept / "bundles" / "tiny-onnxruntime"
    if not path.exists():
        target = quick_target(kept / "targets" / "onnxruntime", "onnxruntime", ("budget = 5", "budget = 2"))
        export(pair, target, data=str(labelled), batch_sizes=[16], out=path.parent)
    return path


@pytest.fixture
def writable(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundles" / "tiny-onnxruntime"))


def rewrite(path: Path, file: str, **changes: Any) -> None:
    """Change a JSON file of a bundle, so that nobody can tell from the hashes."""
    document = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**document, **changes}))
    manifest = json.loads((path / "manifest.json").read_text())
    prints = {key: vars(value) for key, value in fingerprints(path).items() if key in manifest["files"]}
    (path / "manifest.json").write_text(json.dumps({**manifest, "files": prints}))


def test_a_self_test_leaves_all_that_it_measured(bundle: Path, tmp_path: Path) -> None:
    before = fingerprints(bundle)
    done = run(
        "check", bundle, "--self-test", "--budget", 8, "--gate", LOOSE[0], "--json",
        "--history", tmp_path / "history.jsonl", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["kind"] == "self-test"
    assert set(document["latency"]["variants"]) == {"old", "new"}
    assert [gate["gate"] for gate in document["gates"]] == [LOOSE[0], "parity <= 0.001"]
    folder = tmp_path / "checks" / bundle.name
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "junit.xml", "report.md", "samples.npz"]
    with np.load(folder / "samples.npz") as samples:
        assert samples["old.0"].dtype == np.int64
    assert json.loads((tmp_path / "history.jsonl").read_text())["verdict"] == "pass"
    assert fingerprints(bundle) == before


@pytest.mark.alone
def test_a_slowdown_is_found_and_laid_to_the_engine(bundle: Path, tmp_path: Path) -> None:
    target = slowed(tmp_path, 100, "onnxruntime")
    done = run(
        "check", bundle, "--against", bundle, "--target", target, "--against-target", "onnxruntime",
        "--budget", 24, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout
    assert "Engine: The dense twin is slower too" in done.stdout
    assert "Engine: The target is defined otherwise" in done.stdout


def test_a_denser_model_is_told_from_a_slower_engine(bundle: Path, writable: Path, tmp_path: Path) -> None:
    report = json.loads((writable / "evidence" / "report.json").read_text())
    structure = {**report["structure"], "zeros": report["structure"]["zeros"] // 2}
    rewrite(writable, "evidence/report.json", structure=structure)
    found = check(writable, against=bundle, gates=LOOSE, budget=8, out=tmp_path / "checks")
    assert found.passed
    assert "denser" in {cause.where: cause.text for cause in found.causes}["model"]
    assert found.measured["sparsity"] is not None
    assert found.twins is not None


def test_a_bundle_of_the_release_before_is_checked_against(bundle: Path, writable: Path, tmp_path: Path) -> None:
    report = json.loads((writable / "evidence" / "report.json").read_text())
    pair, history = report["pair"], report["pair"]["history"]
    phases = [renamed(phase, regrown="revived") for phase in history["phases"]]
    pair = {**renamed(pair, left_dense="dense"), "history": {**history, "phases": phases}}
    del pair["reference"]
    latency = [renamed(entry, variants="arms") for entry in report["latency"]]
    rewrite(writable, "evidence/report.json", schema_version=4, pair=pair, latency=latency)
    done = run("check", bundle, "--against", writable, "--budget", 8, "--gate", LOOSE[0], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "against"
    assert "✓ golden outputs" in run("verify", writable, cwd=tmp_path).stdout


def test_accuracy_of_both_on_the_same_samples(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    gates = (*LOOSE, "accuracy.drop <= 3")
    found = check(bundle, against=bundle, gates=gates, data=str(labelled), budget=8, out=tmp_path / "checks")
    assert found.accuracy is not None
    assert found.accuracy.drop.value == 0
    assert found.accuracy.samples == 200


@pytest.mark.alone
def test_stored_ratios_of_this_machine_and_of_another(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "ci" / "cpu.json"
    saved = run("check", bundle, "--save", file, "--budget", 12, cwd=tmp_path)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert "One stored check tells nothing of how far the ratio" in " ".join(saved.stdout.split())
    alone = check(bundle, baseline=file, budget=4, out=tmp_path / "checks")
    assert alone.exit_code == 4
    assert any("Store more of the same bundle" in note for note in alone.notes)

    document = json.loads(file.read_text())
    (stored,) = document["entries"][0]["checks"]
    document["entries"][0]["checks"] = [stored] * 3
    file.write_text(json.dumps(document))
    found = check(bundle, baseline=file, gates=LOOSE, budget=8, out=tmp_path / "checks")
    assert found.passed
    assert found.old is None
    assert any("The 3 stored checks, of 0.0 hours, differ by 0.0 %" in note for note in found.notes)

    document["entries"][0]["machine"]["cores"] += 62
    file.write_text(json.dumps(document))
    mistake(3, "no ratios of a machine like this one", "check", bundle, "--baseline", file, "-q", cwd=tmp_path)


def test_a_vague_ratio_is_not_stored(bundle: Path, tmp_path: Path) -> None:
    found = check(bundle, save=tmp_path / "cpu.json", budget=1, out=tmp_path / "checks")
    assert found.exit_code == 4
    assert found.notes[-1] == f"Nothing was stored in {tmp_path / 'cpu.json'}: the check did not pass."
    assert not (tmp_path / "cpu.json").exists()


def test_where_nothing_can_be_kept_nothing_is_measured(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cpu.json").write_text("{")
    (tmp_path / "file").write_text("")
    for options, said in (
        (("--save", "cpu.json"), "cpu.json"),
        (("--save", "file/cpu.json"), "File exists"),
        (("--self-test", "--history", "file/history.jsonl"), "File exists"),
    ):
        mistake(2, said, "check", bundle, *options, "--quiet", cwd=tmp_path)
    assert not (tmp_path / "checks").exists()


def test_of_another_model_is_no_baseline(bundle: Path, writable: Path, tmp_path: Path) -> None:
    one = Stored("2026-01-01T00:00:00+00:00", Measurement(3.0, 2.9, 3.1))
    entry = Entry(MachineClass("A processor", None, 2), "onnxruntime", "1.0", "1" * 64, 900, 1000, (one,))
    baseline.save(tmp_path / "cpu.json", Bundle.load(bundle).manifest, entry)
    rewrite(writable, "manifest.json", name="other")
    with pytest.raises(BaselineError, match="is of the model tiny"):
        check(writable, baseline=tmp_path / "cpu.json", out=tmp_path / "checks")


def test_an_edited_bundle_is_not_measured(bundle: Path, writable: Path, tmp_path: Path) -> None:
    model = writable / "model" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    for new, old in ((writable, bundle), (bundle, writable)):
        said = mistake(2, "is not as it was written", "check", new, "--against", old, "--quiet", cwd=tmp_path)
        assert "model/model.onnx was altered" in said
    assert not (tmp_path / "checks").exists()


def test_a_bundle_with_wrong_answers_is_not_faster(bundle: Path, writable: Path, tmp_path: Path) -> None:
    """Whatever the latency says."""
    golden = writable / "evidence" / "golden.npz"
    arrays = dict(np.load(golden))
    np.savez(golden, **{name: array + (0 if name.startswith("input") else 1) for name, array in arrays.items()})
    rewrite(writable, "evidence/report.json")
    found = check(writable, against=bundle, gates=LOOSE, budget=6, out=tmp_path / "checks")
    assert found.exit_code == 1
    assert {gate.gate: gate.status for gate in found.gates}["parity <= 0.001"] == "fail"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing was named to check against."),
        (("--self-test", "--save", "x.json"), "A check is against one thing."),
        (("--baseline", "missing.json"), "There is no baseline at missing.json."),
        (("--self-test", "--gate", "latency.p50.ratio < 1"), "'<=' or '>=' is missing"),
        (("--self-test", "--gate", "speedup >= 2"), "speedup is not measured"),
        (("--self-test", "--gate", "accuracy.drop <= 1"), "accuracy.drop is not measured"),
        (("--self-test", "--budget", "0"), "--budget 0"),
        (("--self-test", "--data", "digits:test"), "--data goes with --against only."),
        (("--against", "nowhere"), "There is no bundle at nowhere."),
        (("--self-test", "--target", "cpu"), "was made for the target 'onnxruntime'"),
        (("--self-test", "--threads", "99"), "--threads 99"),
    ],
)
def test_mistakes(bundle: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    mistake(2, said, "check", bundle, *arguments, "--quiet", cwd=tmp_path)


def test_a_gate_is_pointed_at(bundle: Path, tmp_path: Path) -> None:
    done = run("check", bundle, "--self-test", "--gate", "latency.p50.ration <= 1.03", cwd=tmp_path)
    assert done.stderr.splitlines()[:3] == [
        "error: unknown metric 'latency.p50.ration' (did you mean 'latency.p50.ratio'?)",
        "  latency.p50.ration <= 1.03",
        "  ^^^^^^^^^^^^^^^^^^",
    ]


def test_bundles_that_take_other_inputs(bundle: Path, writable: Path, tmp_path: Path) -> None:
    document = json.loads((writable / "manifest.json").read_text())
    document["inputs"][0]["shape"] = ["batch", 3, 8, 8]
    (writable / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="can't be compared: the inputs differ"):
        check(bundle, against=writable, out=tmp_path / "checks")


def test_bundles_that_answer_otherwise_have_no_accuracy_in_common(
    bundle: Path, writable: Path, labelled: Path, tmp_path: Path
) -> None:
    document = json.loads((writable / "manifest.json").read_text())
    document["outputs"][0]["name"] = "scores"
    (writable / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="can't be compared: the outputs differ"):
        check(bundle, against=writable, data=str(labelled), out=tmp_path / "checks")


def test_an_old_runtime_that_can_not_run_here(bundle: Path, writable: Path, tmp_path: Path) -> None:
    """Its versions can't be had: what is stored is the way out, and is named."""
    report = json.loads((writable / "evidence" / "report.json").read_text())
    locked = {**report["target"]["locked"], "onnxruntime": "0.0.1"}
    rewrite(writable, "evidence/report.json", target={**report["target"], "locked": locked})
    done = run("check", bundle, "--against", writable, "--quiet", cwd=tmp_path, PIP_NO_INDEX="1")
    assert done.returncode == 3
    assert "The old bundle can't run here" in done.stderr
    assert "--baseline" in done.stderr


def test_a_worker_that_dies_leaves_its_samples_and_no_verdict(bundle: Path, tmp_path: Path) -> None:
    target = slowed(tmp_path, 1, "onnxruntime")
    process = subprocess.Popen(
        [sys.executable, "-m", "acdc_export", "check", bundle, "--self-test", "--target", target, "--budget", "12"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("latency: 25 %"):
            break
    kill_workers(process, target)
    said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "NOT MEASURED" in said
    with np.load(tmp_path / "checks" / bundle.name / "samples.npz") as samples:
        assert len(samples["old.0"]) > 0


def test_one_core_is_enough_and_is_said(bundle: Path, tmp_path: Path) -> None:
    first = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "acdc_export", "check", str(bundle), "--self-test", "--budget", "8"]
    done = subprocess.run(
        ["taskset", "-c", first, *command, "--gate", LOOSE[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "One core was measured on" in " ".join(done.stdout.split())


def test_the_bundle_of_a_named_gate(pair: Pair, labelled: Path, tmp_path: Path) -> None:
    """Gates on the command line take the place of the pipeline's; the target's stay."""
    target = quick_target(tmp_path / "targets" / "onnxruntime", "onnxruntime", ("budget = 5", "budget = 2"))
    done = run(
        "--pair", pair.path, "--target", target, "--data", labelled, "--batch-size", 16, "--quiet",
        "--gate", "size <= 1MB", "--gate", "memory.peak <= 2GiB", "--gate", "parity.max_abs <= 1e-3", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    gates = [gate.gate for gate in Bundle.load(tmp_path / "bundles" / "tiny-onnxruntime").report.gates]
    assert gates == ["size <= 1MB", "memory.peak <= 2GiB", "parity.max_abs <= 1e-3", "parity <= 0.001"]
    said = mistake(
        2, "accuracy.drop is not measured: give samples with --data", "--pair", pair.path, "--target", target,
        "--gate", "accuracy.drop <= 1", "--quiet", cwd=tmp_path,
    )  # fmt: skip
    assert "^^^^^^^^^^^^^" in said
