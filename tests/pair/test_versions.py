"""Pairs that older releases wrote, and what a record may not say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acdc_export.errors import PairError
from acdc_export.pair import SCHEMA_VERSION, Pair, ReferenceRecord, TensorSpec
from acdc_export.records.history import PhaseRecord

from ..conftest import fill
from .test_store import edit, rehash

OLD = Path(__file__).parent / "pair-v1.json"  # as the first release wrote it


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    fill(folder)
    shutil.copy(OLD, folder / "pair.json")
    rehash(folder)  # the ONNX of another release of onnx has other bytes
    return folder


def test_a_pair_of_the_first_schema_is_read(old: Path) -> None:
    pair = Pair.load(old)
    record = pair.record
    assert pair.halves == record.state_dicts == ("sparse", "dense")
    assert record.pattern.left_dense == {"conv1": "excluded by 'conv1'"}
    assert record.reference == ReferenceRecord("PyTorch 2.13.0, eager")
    assert record.history is not None
    assert record.history.phases[-1] == PhaseRecord("sparse", 4, 6, {"conv2.weight": 922}, changed=0.06, regrown=0.03)
    assert (record.classes, record.judged_output, record.score, record.preprocessing) == ((), None, None, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("pattern"),
        lambda document: document.update(history=None),
        lambda document: document["history"].update(phases=3),
        lambda document: document.update(pattern=[]),
        lambda document: document.update(tools="many"),
    ],
)
def test_a_broken_one_is_refused_like_any_other(old: Path, change: Callable[[dict], object]) -> None:
    edit(old, change)
    with pytest.raises(PairError, match="is not what its name says"):
        Pair.load(old)


def test_a_new_key_under_the_old_version_is_refused(old: Path) -> None:
    edit(old, lambda document: document.update(extra=1))
    with pytest.raises(PairError, match="extra"):
        Pair.load(old)


@pytest.mark.parametrize("version", [0, 3, "2", None, 1.5, [1]])
def test_other_versions_are_refused(old: Path, version: Any) -> None:
    edit(old, lambda document: document.update(schema_version=version))
    with pytest.raises(PairError, match="this release reads 1 and 2") as caught:
        Pair.load(old)
    assert ("Update" in caught.value.remedy) == (version == 3)


def test_what_is_written_is_of_the_new_schema(pair: Pair) -> None:
    document = json.loads((pair.path / "pair.json").read_text())
    assert document["schema_version"] == SCHEMA_VERSION == 2
    assert document["halves"] == document["state_dicts"] == ["sparse", "dense"]
    assert document["reference"] == {"computed_by": "ONNX Runtime"}
    assert "regrown" in document["history"]["phases"][0]


def test_the_reserved_fields_are_kept(make_pair: Callable[..., Pair]) -> None:
    facts = {
        "judged_output": "logits",
        "score": "top-1",
        "classes": tuple("0123456789"),
        "preprocessing": {"resize": 8, "mean": [0.5], "crop": None},
    }
    loaded = Pair.load(make_pair(**facts).path).record
    assert {name: getattr(loaded, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"judged_output": "boxes"}, "judged_output: there is no output 'boxes', only logits"),
        ({"score": " "}, "score: an empty name"),
        ({"classes": ("cat", "")}, "classes: an empty name"),
        ({"classes": ("cat", "dog")}, "classes: 2 names for 10 classes"),
        ({"preprocessing": {"mean": float("nan")}}, "preprocessing: not JSON"),
        ({"preprocessing": {"mean": {1, 2}}}, "preprocessing: not JSON"),
        ({"reference": ReferenceRecord("")}, "say what computed the reference outputs"),
        ({"halves": ()}, "halves: name the sparse half, the dense one, or both"),
        ({"halves": ("sparse", "sparse")}, "halves: name"),
        ({"halves": ("sparse",)}, "state_dicts: there is one of a half that isn't there"),
    ],
)
def test_facts_that_contradict_each_other_are_never_written(
    make_pair: Callable[..., Pair], tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    with pytest.raises(PairError, match=said):
        make_pair(**facts)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"judged_output": "boxes"}, "judged_output"),
        ({"classes": ["cat"]}, "1 names for 10"),
        ({"classes": "cat"}, "classes"),
        ({"preprocessing": []}, "preprocessing"),
        ({"halves": ["both"]}, "halves"),
        ({"reference": {"computed_by": "x", "when": "now"}}, "reference.when"),
        ({"reference": None}, "reference"),
    ],
)
def test_nor_read(pair: Pair, facts: dict[str, Any], said: str) -> None:
    edit(pair.path, lambda document: document.update(facts))
    with pytest.raises(PairError, match=said):
        Pair.load(pair.path)


def test_class_names_are_counted_where_the_shape_says_how_many(make_pair: Callable[..., Pair]) -> None:
    """Of an output with more axes than two, any may be that of the classes."""
    from acdc_export.pair.record import contradiction

    record = make_pair().record
    pixels = TensorSpec("pixels", "float32", ("batch", 2, 8, 8))
    for outputs, judged, problem in (
        ((pixels,), None, None),
        ((*record.outputs, pixels), None, None),
        ((*record.outputs, pixels), "logits", "classes: 2 names for 10 classes"),
        ((*record.outputs, pixels), "pixels", None),
    ):
        fields = {**vars(record), "outputs": outputs, "judged_output": judged, "classes": ("cat", "dog")}
        assert contradiction(type(record)(**fields)) == problem
