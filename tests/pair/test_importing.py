"""Pairs of which a half or the training is missing, and pairs that come from ONNX: no torch in sight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from acdc_export import inspection, lowering, pair
from acdc_export.errors import PairError
from acdc_export.pair import Half, LayerCount, Pair, PatternRecord

from ..conftest import ROWS, SIDE, logits, network, weights
from .test_store import edit, rehash

X = np.random.default_rng(5).normal(size=(ROWS, 1, SIDE, SIDE)).astype(np.float32)


def import_onnx(path: Path, *halves: Half, **facts: Any) -> Pair:
    """An importer: plain ONNX files in, a pair out."""
    graphs = {half: network(weights(1, 0.9 if half == "sparse" else 0.0)) for half in halves}
    audits = lowering.audit(onnx_ir(graphs[halves[0]]))
    pruned = {weight.name: LayerCount(weight.zeros, weight.total) for weight in audits if weight.zeros}
    return pair.build(
        path,
        {half: graph.SerializeToString() for half, graph in graphs.items()},
        inputs={"input": X},
        outputs={half: {"logits": logits(graph, X)} for half, graph in graphs.items()},
        computed_by="ONNX Runtime",
        pattern=PatternRecord("unstructured", "uniform", 0.9, pruned),
        **facts,
    )


def onnx_ir(graph: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.from_proto(graph)


@pytest.mark.parametrize("halves", [("sparse",), ("dense",), ("sparse", "dense")])
def test_a_pair_needs_one_half_and_no_training(tmp_path: Path, halves: tuple[Half, ...]) -> None:
    import_onnx(tmp_path / "imported", *halves, tools={"onnx": onnx.__version__})
    loaded = Pair.load(tmp_path / "imported")
    assert loaded.halves == halves
    assert loaded.record.history is None
    assert loaded.record.state_dicts == ()
    assert set(loaded.record.tools) == {"acdc-export", "onnx"}
    assert sorted(loaded.record.files) == sorted([*(f"{half}.onnx" for half in halves), "reference.npz"])
    assert loaded.record.pattern.achieved == pytest.approx(0.9 if "sparse" in halves else 0, abs=0.01)
    for half in ("sparse", "dense"):
        expected = {"logits"} if half in halves else set()
        assert set(loaded.reference.outputs(half)) == expected
    loaded.require(*halves)


def test_a_missing_half_is_said_where_it_is_asked_for(tmp_path: Path) -> None:
    alone = import_onnx(tmp_path / "alone", "sparse")
    assert alone.onnx("sparse").is_file()
    for ask in (lambda: alone.onnx("dense"), lambda: alone.require("sparse", "dense")):
        with pytest.raises(PairError, match="has no dense twin, only a sparse half") as caught:
            ask()
        assert "Give a pair with both halves" in caught.value.remedy
    twin = import_onnx(tmp_path / "twin", "dense")
    with pytest.raises(PairError, match="has no sparse half, only a dense twin"):
        twin.require("sparse")


def test_half_a_pair_is_inspected_by_the_weights_of_its_onnx(tmp_path: Path) -> None:
    alone = import_onnx(tmp_path / "alone", "sparse")
    contents = inspection.inspect(alone.path)
    (part,) = contents.parts
    assert part.title.endswith("sparse half")
    assert contents.training is not None
    assert contents.training.history is None

    state = weights(1, 0.9)
    for change, said in ((np.nan, "holds NaN"), (1.0, "has 0 zeros, but pair.json says"), (0.0, "is zero throughout")):
        state["conv2.weight"][...] = change
        onnx.save(network(state), alone.path / "sparse.onnx")
        rehash(alone.path)
        Pair.load(alone.path)  # which has no way to read ONNX
        with pytest.raises(PairError, match=f"sparse.onnx: conv2.weight {said}"):
            inspection.inspect(alone.path)


def test_files_that_the_record_needs_and_outputs_that_it_does_not(tmp_path: Path) -> None:
    alone = import_onnx(tmp_path / "alone", "sparse")
    edit(alone.path, lambda document: document.update(halves=["sparse", "dense"]))
    with pytest.raises(PairError, match=r"no hash for dense\.onnx"):
        Pair.load(alone.path)
    edit(alone.path, lambda document: document.update(halves=["sparse"], state_dicts=["sparse"]))
    with pytest.raises(PairError, match=r"no hash for sparse\.safetensors"):
        Pair.load(alone.path)
    whole = import_onnx(tmp_path / "whole", "sparse", "dense")
    edit(whole.path, lambda document: document.update(halves=["sparse"]))
    with pytest.raises(PairError, match="doesn't hold the inputs and outputs"):
        Pair.load(whole.path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": {}}, "doesn't hold"),
        ({"inputs": {"input": X[:3]}}, "doesn't hold"),
        ({"outputs": {}}, "doesn't hold"),
        ({"outputs": {"dense": {"logits": X[:, 0, 0]}}}, "doesn't hold"),
        ({"outputs": {"sparse": {"logits": X[:, 0, 0] * np.nan}}}, "NaN or infinite"),
        ({"onnx": {}}, "halves: name"),
        ({"computed_by": " "}, "what computed the reference"),
        ({"name": "../up"}, "can't be the name"),
    ],
)
def test_what_makes_no_pair_is_never_written(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {
        "onnx": {"sparse": b"any graph"},
        "inputs": {"input": X},
        "outputs": {"sparse": {"logits": X[:, 0, 0]}},
        "computed_by": "somebody's network",
        "pattern": PatternRecord("unstructured", "unknown", 0.9, {}),
    }
    pair.build(tmp_path / "sound", **arguments)
    with pytest.raises(PairError, match=said):
        pair.build(tmp_path / "imported", **{**arguments, **changes})
    assert not (tmp_path / "imported").exists()


def test_a_pair_is_written_without_torch_and_without_onnx(tmp_path: Path) -> None:
    """The tools that an importer brings are its own."""
    script = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = sys.modules["onnx_ir"] = None
import numpy as np
from pathlib import Path
from acdc_export import pair
Path("given.onnx").write_bytes(b"somebody's graph")
rows = np.ones((4, 3), dtype=np.float32)
pair.build("pairs/theirs", {"sparse": Path("given.onnx")}, {"x": rows}, {"sparse": {"y": rows}},
           computed_by="the authors' network", pattern=pair.PatternRecord("2:4", "group", 0.5, {}), batch="N")
print(pair.Pair.load("pairs/theirs").record.inputs[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "('N', 3)\n", done.stderr
