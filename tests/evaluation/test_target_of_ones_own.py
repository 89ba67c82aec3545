"""A target may do all of this without a change to the package: run in the host's interpreter, build FP32 itself, put
several batch sizes into one file, keep how it was made beside it, keep a clock of its own, profile by layer, tell what
a reader should know, and require a pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acdc_export import check, deployments, export, resources, run, verify
from acdc_export.config import load_target
from acdc_export.engines import environment, status
from acdc_export.errors import AcdcExportError, GraphError, PairError, RuntimeUnavailable, UsageError
from acdc_export.options import CompareOptions
from acdc_export.pair import Pair

from ..pair.test_importing import import_onnx

TOML = """\
name = "reference"
description = "ONNX's own reference evaluator, in the interpreter at hand"
{top}

[runtime]
name = "onnx"
python = "host"

[license]
name = "Apache 2.0"
url = "https://github.com/onnx/onnx/blob/main/LICENSE"
deployable = true

[graph]
batch = "listed"
passes = ["fold_batchnorm"]

[precisions.fp32]
tolerance = 1e-3
build = true

[benchmark]
budget = 2
batch_sizes = [1, 4]
gated_batch_size = 4
"""

ENGINE = """\
import json

import onnx
from onnx.reference import ReferenceEvaluator


def build(model, stem, precision, batch_sizes, batches):
    assert batches is None, "FP32 needs no samples"
    onnx.save(onnx.load(model), stem + ".onnx")
    with open(stem + ".json", "w") as file:
        json.dump({"precision": precision, "batch_sizes": batch_sizes}, file)
    return stem + ".json"


def weights(path):
    arrays = [onnx.numpy_helper.to_array(item) for item in onnx.load(path[:-4] + "onnx").graph.initializer]
    return {str(at): [int((array == 0).sum()), array.size] for at, array in enumerate(arrays) if array.ndim > 1}


def deployed(path):
    return [path]


def load(path, batch_size, threads, precision):
    with open(path) as file:
        plan = json.load(file)
    if batch_size not in plan["batch_sizes"]:
        raise ValueError(f"built for {plan['batch_sizes']}")
    return Model(path[:-4] + "onnx")


class Model:
    def __init__(self, path):
        self.evaluator = ReferenceEvaluator(path)
        self.operators = [node.op_type for node in onnx.load(path).graph.node]

    def info(self):
        return {"runtime": "onnx", "version": onnx.__version__, "notes": ["It is slow."]}

    def run(self, inputs):
        return dict(zip(self.evaluator.output_names, self.evaluator.run(None, inputs)))

    def bind(self, inputs):
        return lambda: self.run(inputs)

    def time(self, once, repeats):
        for _ in range(repeats):
            once()
        return [2_000_000] * repeats  # what the device's events say

    def profile(self, inputs, repeats):
        return [{"name": f"node {at}", "operator": name, "seconds": 1e-3} for at, name in enumerate(self.operators)]
"""


@pytest.fixture
def reference(tmp_path: Path) -> Callable[[str], str]:
    """Writes the target's folder; `top` are lines at the top of its target.toml."""

    def write(top: str = "") -> str:
        folder = tmp_path / "reference"
        folder.mkdir()
        (folder / "target.toml").write_text(TOML.format(top=top))
        (folder / "engine.py").write_text(ENGINE)
        return str(folder)

    return write


@pytest.mark.slow
def test_all_of_it_at_once(
    reference: Callable[[str], str], pair: Pair, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = reference("")
    assert status(load_target(target)).state == "installed"
    bundle = export(pair, target, data=str(labelled), gates=["sparsity >= 0.5"], out=tmp_path / "bundles")
    report = bundle.report
    assert [model.file for model in bundle.manifest.models] == ["model.json"]  # one for both batch sizes
    assert {workload.batch_size for workload in report.latency} == {1, 4}
    assert report.structure.steps[-1].name == "onnx's own fp32"
    assert report.structure.steps[-1].zeros >= report.structure.zeros
    assert sorted(path.name for path in (bundle.path / "model").iterdir()) == ["model.json", "model.onnx"]
    assert report.size.sparse == (bundle.path / "model" / "model.json").stat().st_size  # what one ships
    assert "It is slow." in report.notes
    assert {variant.p50 for workload in report.latency for variant in workload.variants.values()} == {2.0}
    assert [row.operator for row in report.profile][:2] == ["Conv", "Relu"]
    assert "numpy" in report.target.locked
    assert verify(bundle.path, target=target).exit_code == 0
    # The host's interpreter can't be given other versions, so a check says what changed.
    monkeypatch.setattr(environment, "version", lambda name: "9.9")
    finding = check(bundle.path, self_test=True, target=target, budget=2, out=tmp_path / "checks")
    (note,) = (note for note in finding.notes if "other versions" in note)
    assert "numpy" in note
    assert "→ 9.9" in note


@pytest.mark.parametrize(("required", "fits"), [("unstructured", True), ("2:4", False)])
def test_a_required_pattern(
    reference: Callable[[str], str], pair: Pair, tmp_path: Path, required: str, fits: bool
) -> None:
    target = reference(f'requires = "{required}"')
    if fits:
        assert export(pair, target, gates=["sparsity >= 0.5"], out=tmp_path / "bundles").report.passed
        return
    with pytest.raises(AcdcExportError, match="2:4") as caught:
        export(pair, target, out=tmp_path / "bundles")
    assert 'pattern.kind = "2:4"' in caught.value.remedy
    assert not (tmp_path / "bundles" / "tiny-reference").exists()
    with pytest.raises(UsageError, match="the pipeline digits has unstructured"):  # before hours of training
        run("digits", target, runs=tmp_path / "runs", out=tmp_path / "bundles")
    assert not (tmp_path / "runs").exists()


def test_a_profile_that_fails_is_a_note(reference: Callable[[str], str], pair: Pair, tmp_path: Path) -> None:
    target = reference("")
    engine = Path(target) / "engine.py"
    engine.write_text(
        engine.read_text().replace("return [{", "raise RuntimeError('no counters here')\n        return [{")
    )
    report = export(pair, target, gates=["sparsity >= 0.5"], out=tmp_path / "bundles").report
    assert report.passed
    assert report.profile == ()
    assert any("not profiled by operator" in note and "no counters here" in note for note in report.notes)


def counting(target: str, counted: str) -> str:
    """The target, with another `weights`: an expression of `arrays`, the weights by their names."""
    engine, (head, rest) = Path(target) / "engine.py", ENGINE.split("def weights(path):")
    arrays = "{item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path[:-4] + 'onnx').graph.initializer}"
    body = f"\n    arrays = {arrays}\n    return {counted}\n\n\ndef deployed"
    engine.write_text(f"{head}def weights(path):{body}{rest.partition('def deployed')[2]}")
    return target


def test_zeros_that_a_build_loses_are_found_by_weight(
    reference: Callable[[str], str], pair: Pair, tmp_path: Path
) -> None:
    """Others that it won elsewhere make up for none."""
    counts = "{'conv2.weight': [0, arrays['conv2.weight'].size], 'head.weight': [10**6, 10**6]}"
    with pytest.raises(GraphError, match=r"onnx lost \d+ zeros of the weight conv2.weight when it built fp32"):
        export(pair, counting(reference(""), counts), gates=["sparsity >= 0.5"], out=tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


def test_zeros_are_those_of_what_was_built(reference: Callable[[str], str], pair: Pair, tmp_path: Path) -> None:
    counts = "{'conv2.weight': [arrays['conv2.weight'].size - 1, arrays['conv2.weight'].size]}"
    target = counting(reference(""), counts)
    report = export(pair, target, gates=["sparsity >= 0.99"], out=tmp_path / "bundles").report
    assert report.structure.zeros == report.structure.total - 1
    assert [row.zeros for row in report.structure.layers if row.pruned] == [report.structure.zeros]
    assert report.passed
    (note,) = (note for note in report.notes if "built its own form" in note)
    assert "onnx built its own form, and counts 9,216 of " in note


LACKS = """

class Unavailable(Exception):
    remedy = "Install one."


def can_build(precision):
    raise Unavailable("there is no compiler")
"""


def test_what_a_build_lacks_is_told_before_anything_is_trained(
    reference: Callable[[str], str], pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = reference("")
    with (Path(target) / "engine.py").open("a") as engine:
        engine.write(LACKS)
    with pytest.raises(RuntimeUnavailable, match=r"onnx: there is no compiler\nInstall one."):
        run("digits", target, runs=tmp_path / "runs", out=tmp_path / "bundles")
    assert not (tmp_path / "runs").exists()
    # Of a survey it is the reason why a target is missing.
    monkeypatch.setattr(resources, "names", lambda kind: [target])
    with pytest.raises(RuntimeUnavailable, match="Nothing can be compared here. reference: onnx: there is no compiler"):
        deployments.several(CompareOptions())


def test_a_pair_from_plain_onnx_is_deployed_like_any_other(reference: Callable[[str], str], tmp_path: Path) -> None:
    pair = import_onnx(tmp_path / "imported", "sparse", "dense")
    bundle = export(pair, reference(""), gates=["sparsity >= 0.5"], out=tmp_path / "bundles")
    assert bundle.passed
    text = (bundle.path / "report.md").read_text()
    assert "Nothing is known of how it was trained." in text
    assert "Parity: against outputs computed by ONNX Runtime." in text


def test_a_pair_without_its_twin_is_refused_before_anything_is_written(
    reference: Callable[[str], str], tmp_path: Path
) -> None:
    pair = import_onnx(tmp_path / "imported", "sparse")
    with pytest.raises(PairError, match="has no dense twin"):
        export(pair, reference(""), out=tmp_path / "bundles")
    assert not (tmp_path / "bundles").exists()
