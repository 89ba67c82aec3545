"""Bundles on disk: whole, verified, and a corpus of broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from acdc_export import bundle, present
from acdc_export.bundle import Bundle, Manifest, ModelFile
from acdc_export.errors import BundleError, OutputError
from acdc_export.pair import TensorSpec

from ..present.examples import HISTORY, example


@pytest.fixture
def written(tmp_path: Path) -> Path:
    import numpy as np

    path = tmp_path / "bundles" / "tiny-cpu"
    with bundle.create(path) as folder:
        (folder / "model" / "model-b1.onnx").write_bytes(b"model for one")
        (folder / "model" / "model-b16.onnx").write_bytes(b"model for sixteen")
        manifest = Manifest(
            name="tiny",
            target="cpu",
            target_sha256="0" * 64,
            runtime="deepsparse",
            precision="fp32",
            models=(ModelFile("model-b1.onnx", 1), ModelFile("model-b16.onnx", 16)),
            inputs=(TensorSpec("input", "float32", ("batch", 1)),),
            outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
            batch_sizes=(1, 16),
            gated_batch_size=16,
            tolerance=1e-3,
            supported_ops=1.0,
        )
        rows = np.arange(4, dtype=np.float32)[:, None]
        bundle.finish(
            folder,
            manifest,
            example(),
            golden_inputs={"input": rows},
            golden_outputs={1: {"logits": rows + 1}, 16: {"logits": rows + 16}},
            samples={"b1.sparse.0": np.arange(3)},
        )
    return path


def test_round_trip(written: Path) -> None:
    loaded = Bundle.load(written)
    assert loaded.damage() == []
    assert loaded.manifest.batch_sizes == (1, 16)
    assert loaded.golden_outputs(3) == {}
    assert loaded.golden_inputs["input"].shape == (4, 1)
    assert loaded.golden_outputs(16)["logits"][0, 0] == 16
    assert loaded.model(16).read_bytes() == b"model for sixteen"
    assert loaded.report == example()
    assert set(loaded.manifest.files) == {
        "model/model-b1.onnx",
        "model/model-b16.onnx",
        "evidence/golden.npz",
        "evidence/report.json",
        "evidence/samples.npz",
    }


def test_a_bundle_says_what_became_of_it(written: Path) -> None:
    """As in `assert bundle.passed, bundle`."""
    loaded = Bundle.load(written)
    assert loaded.passed
    assert str(loaded) == present.text(example())
    assert (written / "report.md").read_text() == present.markdown(example())
    assert (written / "run.svg").is_file()


def test_the_report_for_people_may_be_edited(written: Path) -> None:
    (written / "report.md").write_text("annotated by a colleague")
    assert Bundle.load(written).damage() == []


@pytest.mark.parametrize("name", ["model/model-b16.onnx", "evidence/golden.npz", "evidence/report.json"])
def test_everything_else_may_not(written: Path, name: str) -> None:
    path = written / name
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1) if name.endswith("json") else path.read_bytes()[:-1])
    assert name in Bundle.load(written).damage()[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no manifest.json"),
        ("{", "is not what its name says"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "name"),
    ],
)
def test_broken_manifests(written: Path, content: str | None, said: str) -> None:
    manifest = written / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(BundleError, match=said):
        Bundle.load(written)


def test_what_was_added_is_damage(written: Path) -> None:
    (written / "model" / "backdoor.onnx").write_bytes(b"")
    assert Bundle.load(written).damage() == ["model/backdoor.onnx was added"]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(models=[]),
        lambda document: document.update(files={}),
        lambda document: document.update(models=[{"file": "../../evidence/dense.onnx", "batch_size": None}]),
        lambda document: document["files"].pop("evidence/golden.npz"),
    ],
)
def test_a_manifest_that_leaves_things_out_is_refused(written: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((written / "manifest.json").read_text())
    change(document)
    (written / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="lists no hash for"):
        Bundle.load(written)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        Bundle.load(tmp_path / "nowhere")


def test_a_broken_report_is_said(written: Path) -> None:
    document = json.loads((written / "evidence" / "report.json").read_text())
    (written / "evidence" / "report.json").write_text(json.dumps({**document, "gates": 3}))
    with pytest.raises(BundleError, match="report.json: gates"):
        _ = Bundle.load(written).report


def test_a_report_of_the_release_before_is_read(written: Path) -> None:
    """As that release wrote it, of the same example: it counted no totals of the weights, nor the twin's zeros."""
    shutil.copy(Path(__file__).parent / "report-v4.json", written / "evidence" / "report.json")
    history = replace(HISTORY, totals={}, twin_nonzeros={})
    assert Bundle.load(written).report == replace(example(), pair=replace(example().pair, history=history))


def test_a_report_of_other_schemas_is_refused(written: Path) -> None:
    document = json.loads((written / "evidence" / "report.json").read_text())
    for version, remedy in ((3, "Export the pair again"), (6, "Update acdc-export")):
        (written / "evidence" / "report.json").write_text(json.dumps({**document, "schema_version": version}))
        with pytest.raises(BundleError, match=f"schema version {version}; this release reads 4 and 5") as caught:
            _ = Bundle.load(written).report
        assert remedy in caught.value.remedy


def test_a_bundle_of_a_pair_without_a_history(written: Path, tmp_path: Path) -> None:
    """There is no picture of its training, and the report for people says why."""
    record = replace(example(), pair=replace(example().pair, history=None))
    with bundle.create(tmp_path / "other") as folder:
        (folder / "model" / "model-b1.onnx").write_bytes(b"")
        manifest = replace(Bundle.load(written).manifest, models=(ModelFile("model-b1.onnx", 1),), files={})
        bundle.finish(folder, manifest, record, {}, {}, {})
    assert Bundle.load(tmp_path / "other").report == record
    assert not (tmp_path / "other" / "run.svg").exists()
    text = (tmp_path / "other" / "report.md").read_text()
    assert "Nothing is known of how it was trained." in text
    assert "run.svg" not in text
    assert "Layers left dense" in text


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(OutputError, match="not a folder of ours"), bundle.create(tmp_path / "photos"):
        pytest.fail("begun")
