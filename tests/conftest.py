"""Fixtures that several rooms share: a pair made by hand, small enough to look through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from acdc_export.pair import LayerCount, Pair, PatternRecord, Record, ReferenceRecord, TensorSpec, write
from acdc_export.records.history import History, PhaseRecord

# No verdict hangs on how fast a machine is: by default an example fails after 200 ms.
settings.register_profile("whatever it takes", deadline=None)
settings.load_profile("whatever it takes")

CHANNELS, CLASSES, SIDE = 32, 10, 8
ROWS = 24


def weights(seed: int, sparsity: float) -> dict[str, np.ndarray]:
    """The state dict of a small network: conv, conv, mean over height and width, head. Conv weights are pruned."""
    random = np.random.default_rng(seed)
    state = {
        "conv1.weight": random.normal(0, 0.4, (CHANNELS, 1, 3, 3)),
        "conv1.bias": random.normal(0, 0.1, CHANNELS),
        "conv2.weight": random.normal(0, 0.1, (CHANNELS, CHANNELS, 3, 3)),
        "conv2.bias": random.normal(0, 0.1, CHANNELS),
        "head.weight": random.normal(0, 0.5, (CLASSES, CHANNELS)),
        "head.bias": random.normal(0, 0.1, CLASSES),
    }
    if sparsity:
        weight = state["conv2.weight"]
        weight[np.abs(weight) < np.quantile(np.abs(weight), sparsity)] = 0
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in state.items()}


def network(state: dict[str, np.ndarray]) -> onnx.ModelProto:
    """That network as the exporter writes it: symbolic batch, ReduceMean, IR 10, opset 18."""
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", "conv1.weight", "conv1.bias"], ["a"], **pads),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.weight", "conv2.bias"], ["c"], **pads),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("ReduceMean", ["d", "axes"], ["e"], keepdims=0),
        helper.make_node("Gemm", ["e", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in state.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        initializers,
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return onnx.shape_inference.infer_shapes(model)


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def fill(folder: Path) -> None:
    """The five files of a pair. The twin differs from the sparse half in its seed alone, so that they disagree."""
    x = np.random.default_rng(7).normal(size=(ROWS, 1, SIDE, SIDE)).astype(np.float32)
    arrays = {"input.input": x}
    for half, sparsity in (("sparse", 0.9), ("dense", 0.0)):
        state = weights(1, sparsity)
        model = network(state)
        onnx.save(model, folder / f"{half}.onnx")
        save_file(state, folder / f"{half}.safetensors")
        arrays[f"{half}.logits"] = logits(model, x)
    np.savez(folder / "reference.npz", **arrays)


def record(**changes: object) -> Record:
    state = weights(1, 0.9)["conv2.weight"]
    settings: dict[str, object] = {
        "name": "tiny",
        "inputs": (TensorSpec("input", "float32", ("batch", 1, SIDE, SIDE)),),
        "outputs": (TensorSpec("logits", "float32", ("batch", CLASSES)),),
        "pattern": PatternRecord(
            "unstructured", "uniform", 0.9, {"conv2.weight": LayerCount(int((state == 0).sum()), state.size)}
        ),
        "reference": ReferenceRecord("ONNX Runtime"),
        "history": History((PhaseRecord("dense", 0, 2), PhaseRecord("sparse", 2, 3))),
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**settings, **changes})


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., Pair]:
    """A function that writes the pair made by hand; what it is given changes its record."""
    return lambda **changes: write(tmp_path / "pairs" / "tiny", record(**changes), fill)


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """An npz that the dense half of the pair made by hand gets right throughout, and the sparse half mostly."""
    x = np.random.default_rng(11).normal(size=(200, 1, SIDE, SIDE)).astype(np.float32)
    path = tmp_path / "labelled.npz"
    np.savez(path, x=x, y=logits(network(weights(1, 0.0)), x).argmax(axis=1))
    return path
