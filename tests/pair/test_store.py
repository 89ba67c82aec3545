"""Pairs that are sound, and a corpus of broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from acdc_export import files
from acdc_export.errors import PairError
from acdc_export.pair import Pair, write

from ..conftest import fill, record


def rehash(path: Path) -> None:
    """Make the hashes fit what is there, as somebody would who edits a pair by hand."""
    document = json.loads((path / "pair.json").read_text())
    for name in document["files"]:
        document["files"][name] = {"sha256": files.sha256(path / name), "bytes": (path / name).stat().st_size}
    (path / "pair.json").write_text(json.dumps(document))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((path / "pair.json").read_text())
    change(document)
    (path / "pair.json").write_text(json.dumps(document))


def edit_weights(path: Path, change: Callable[[dict], object]) -> None:
    state = load_file(path / "sparse.safetensors")
    state = {name: array.copy() for name, array in state.items()}
    change(state)
    save_file(state, path / "sparse.safetensors")
    rehash(path)


def edit_reference(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(path / "reference.npz") as archive:
        arrays = {key: change(archive[key]) for key in archive.files}
    np.savez(path / "reference.npz", **arrays)
    rehash(path)


def test_round_trip(pair: Pair) -> None:
    loaded = Pair.load(pair.path)
    assert loaded.record == pair.record
    assert loaded.record.inputs[0].at(5) == (5, 1, 8, 8)
    assert loaded.record.pattern.achieved == pytest.approx(0.9, abs=1e-3)
    assert loaded.reference.sparse["logits"].shape == loaded.reference.dense["logits"].shape == (24, 10)
    assert np.isfinite(loaded.reference.inputs["input"]).all()


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN = {
    "half-written": (lambda path: (path / "pair.json").unlink(), "holds no pair.json"),
    "a file missing": (lambda path: (path / "dense.onnx").unlink(), "dense.onnx is missing"),
    "truncated onnx": (lambda path: truncate(path / "sparse.onnx"), r"sparse.onnx has \d+ bytes instead of"),
    "truncated weights": (lambda path: truncate(path / "sparse.safetensors"), "sparse.safetensors has"),
    "truncated weights, hash edited": (
        lambda path: (truncate(path / "sparse.safetensors"), rehash(path)),
        "can't be read",
    ),
    "altered": (
        lambda path: (path / "dense.safetensors").write_bytes((path / "dense.safetensors").read_bytes()[:-1] + b"\1"),
        "was altered",
    ),
    "no json": (lambda path: (path / "pair.json").write_text("{"), "is not what its name says"),
    "json of something else": (lambda path: (path / "pair.json").write_text("[]"), "is not what its name says"),
    "a newer schema": (lambda path: edit(path, lambda d: d.update(schema_version=99)), "schema version 99"),
    "a field too many": (lambda path: edit(path, lambda d: d.update(extra=1)), "extra"),
    "a field too few": (lambda path: edit(path, lambda d: d.pop("name")), "name"),
    "a hash too few": (lambda path: edit(path, lambda d: d["files"].pop("dense.onnx")), "no hash for dense.onnx"),
    "a path out of it": (
        lambda path: edit(path, lambda d: d["files"].update({"../x": {"sha256": "0", "bytes": 0}})),
        "points outside",
    ),
    "a name out of it": (lambda path: edit(path, lambda d: d.update(name="../../etc")), "can't be the name"),
    "no reference": (
        lambda path: ((path / "reference.npz").write_bytes(b"PK"), rehash(path)),
        "reference.npz can't be",
    ),
    "a reference of other names": (
        lambda path: (np.savez(path / "reference.npz", **{"input.x": np.zeros(3)}), rehash(path)),
        "doesn't hold the inputs and outputs",
    ),
    "an empty reference": (lambda path: edit_reference(path, lambda array: array[:0]), "doesn't hold the inputs"),
    "NaN in the reference": (lambda path: edit_reference(path, lambda array: array * np.nan), "NaN or infinite"),
    "NaN": (
        lambda path: edit_weights(path, lambda s: s["conv1.weight"].put(3, np.nan)),
        "conv1.weight holds NaN",
    ),
    "infinity": (
        lambda path: edit_weights(path, lambda s: s["head.bias"].put(0, np.inf)),
        "head.bias holds NaN",
    ),
    "an all-zero layer": (
        lambda path: edit_weights(path, lambda s: s["conv2.weight"].fill(0)),
        "every weight of conv2.weight is zero",
    ),
    "a denser layer than said": (
        lambda path: edit_weights(path, lambda s: s["conv2.weight"].fill(1)),
        "conv2.weight has 0 zeros",
    ),
    "a pruned layer missing": (lambda path: edit_weights(path, lambda s: s.pop("conv2.weight")), "lacks conv2.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pairs_are_refused(pair: Pair, case: str) -> None:
    damage, said = BROKEN[case]
    damage(pair.path)
    with pytest.raises(PairError, match=said) as caught:
        Pair.load(pair.path)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert caught.value.remedy


def test_a_missing_pair(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="There is no pair at"):
        Pair.load(tmp_path / "nowhere")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    trap = tmp_path / "model.pt"
    trap.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(PairError, match="reading a pickle runs whatever code is in it"):
        Pair.load(trap)


def test_an_unsound_pair_is_never_written(tmp_path: Path, pair: Pair) -> None:
    def fill_badly(folder: Path) -> None:
        fill(folder)
        state = load_file(folder / "dense.safetensors")
        save_file({name: array * np.nan for name, array in state.items()}, folder / "dense.safetensors")

    with pytest.raises(PairError, match="NaN"):
        write(pair.path, record(), fill_badly)
    assert Pair.load(pair.path).record == pair.record  # and the one that was there is untouched
