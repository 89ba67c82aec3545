"""Several deployments in one run, with real runtimes: bundles of each, their comparison, and what can't be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acdc_export import compare
from acdc_export.bundle import Bundle
from acdc_export.engines import home
from acdc_export.errors import UsageError
from acdc_export.pair import Pair

from .test_cli import mistake, run
from .test_workflow import pytestmark as pytestmark  # the same runtimes
from .test_workflow import quick_target


@pytest.fixture
def control(tmp_path: Path) -> str:
    return quick_target(tmp_path / "targets" / "onnxruntime", "onnxruntime", ("[1, 16]", "[16]"))


@pytest.fixture
def cpu(tmp_path: Path, control: str) -> str:
    """DeepSparse, with the control that is compared anyway."""
    return quick_target(
        tmp_path / "targets" / "cpu", "cpu", ("[1, 16]", "[16]"), ('"onnxruntime", "openvino"', f'"{control}"')
    )


@pytest.mark.slow
def test_two_targets_take_turns_in_one_measurement(
    pair: Pair, cpu: str, control: str, labelled: Path, tmp_path: Path
) -> None:
    done = run(
        "--pair", pair.path, "--target", cpu, "--target", control, "--data", labelled, "--gate", "parity <= 0.1",
        "--threads", 1, "--threads", 2, "--budget", 6, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny: deploy the sparse half in" in done.stdout
    place = tmp_path / "bundles" / "tiny-comparison"
    found = json.loads((place / "comparison.json").read_text())
    names = {"sparse@cpu", "dense@cpu", "sparse@onnxruntime", "dense@onnxruntime"}
    assert {one["name"] for one in found["candidates"]} == names
    assert all(one["accuracy"] for one in found["candidates"])
    assert found["recommended"] in names
    assert [(workload["batch_size"], workload["threads"]) for workload in found["latency"]] == [(16, 2), (16, 1)]
    assert next(iter(found["latency"][0]["variants"])) == "dense@onnxruntime"
    assert [verdict["gate"] for verdict in found["verdicts"]] == ["cpu", "onnxruntime"]
    assert (place / "comparison.svg").read_text().startswith("<svg")
    for name in ("cpu", "onnxruntime"):
        bundle = Bundle.load(tmp_path / "bundles" / f"tiny-{name}")
        assert bundle.damage() == []
        assert bundle.report.exit_code == 0
    ours = Bundle.load(tmp_path / "bundles" / "tiny-cpu").report
    # What takes turns is measured once: the control is the twin that the other target has anyway.
    assert list(ours.latency[0].variants) == ["sparse", "dense", "dense@onnxruntime"]
    assert ours.latency[0].launches == found["latency"][0]["launches"]
    assert ours.latency[0].variants["dense"].p50 == found["latency"][0]["variants"]["dense@cpu"]["p50"]
    assert not list((tmp_path / "bundles").glob(".*"))


def test_one_that_fails_among_several_is_told_and_the_others_go_on(
    pair: Pair, control: str, labelled: Path, tmp_path: Path
) -> None:
    broken = quick_target(tmp_path / "targets" / "broken", "onnxruntime", ("[1, 16]", "[16]"))
    engine = Path(broken) / "engine.py"
    engine.write_text(engine.read_text() + "\n\ndef load(*given):\n    raise ValueError('no such luck')\n")
    found = compare(pair, [broken, control], data=str(labelled), gates=["parity <= 0.1"], out=tmp_path / "bundles")
    assert found.exit_code == 3
    assert found.comparison is not None
    assert "no such luck" in found.comparison.missing["broken"]
    assert [bundle.path.name for bundle in found.bundles] == ["tiny-onnxruntime"]
    assert not (tmp_path / "bundles" / "tiny-broken").exists()


def test_what_was_not_measured_is_said_in_the_comparison_too(
    pair: Pair, control: str, cpu: str, labelled: Path, tmp_path: Path
) -> None:
    broken = quick_target(tmp_path / "targets" / "broken", "onnxruntime", ("[1, 16]", "[16]"))
    engine = Path(broken) / "engine.py"
    engine.write_text(engine.read_text() + "\n\ndef load(*given):\n    raise ValueError('no such luck')\n")
    toml = Path(cpu) / "target.toml"
    toml.write_text(toml.read_text().replace(f'controls = ["{control}"]', f'controls = ["{broken}"]'))
    found = compare(
        pair, [cpu, control], data=str(labelled), gates=["parity <= 0.1", "speedup.vs_control >= 0"], budget=4,
        out=tmp_path / "bundles",
    )  # fmt: skip
    assert found.comparison is not None
    said = "\n".join(found.comparison.notes)
    assert "The control broken was not measured" in said
    assert "'speedup.vs_control >= 0' was not judged: the target onnxruntime has no controls" in said
    assert found.exit_code == 3  # a gate on a control that could not be measured is not green


def test_all_of_them_are_those_that_can_be_had(
    pair: Pair, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its license DeepSparse is listed, without a C compiler our own, and neither is a failure."""
    monkeypatch.setenv("CC", str(tmp_path / "no-cc"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "environments").symlink_to(home() / "environments")  # without the licenses, beside it
    monkeypatch.setenv("ACDC_EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACDC_EXPORT_ACCEPT_LICENSE")
    found = compare(
        pair, ["all"], precisions=["fp32"], data=str(labelled), gates=["parity <= 0.1"], batch_sizes=[16], budget=4,
        out=tmp_path / "bundles",
    )  # fmt: skip
    assert found.comparison is not None
    assert "has not been accepted" in found.comparison.missing["cpu"]
    assert "no-cc" in found.comparison.missing["native"]
    assert {one.target for one in found.comparison.candidates} == {"onnxruntime", "openvino"}
    assert [verdict.gate for verdict in found.comparison.verdicts] == ["onnxruntime", "openvino"]
    assert found.exit_code == 0


def test_mistakes_in_what_is_compared(pair: Pair, cpu: str, control: str, tmp_path: Path) -> None:
    both = ("--pair", pair.path, "--target", cpu, "--target", control)
    mistake(2, "has no precision 'int7'", *both, "--precision", "int7", cwd=tmp_path)
    mistake(2, "give samples with --data", *both, "--gate", "accuracy.drop <= 1", cwd=tmp_path)
    mistake(2, "physical cores", *both, "--threads", 1, "--threads", 999, cwd=tmp_path)
    foreign = tmp_path / "bundles" / "tiny-comparison" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    mistake(2, "tiny-comparison exists and is not a folder of ours", *both, cwd=tmp_path)
    with pytest.raises(UsageError, match="Two targets are named cpu"):
        compare(pair, ["cpu", cpu])
    with pytest.raises(UsageError, match="Unknown target 'cpuu'"):
        compare(pair, ["cpuu"])
    with pytest.raises(UsageError, match=r"compare has no option 'bugdet' \(did you mean 'budget'\?\)"):
        compare(pair, ["cpu"], bugdet=3)
