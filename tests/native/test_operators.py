"""ONNX's own tests of every operator that the compiler knows: computed to what they expect, or refused."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import compose, numpy_helper
from onnx.backend.test.case import node

from acdc_export.errors import GraphError
from acdc_export.native.fuse import OPERATORS, fuse
from acdc_export.native.graph import read
from acdc_export.native.layout import lay_out

from .conftest import build
from .networks import parity

SYMMETRIC = {"Add", "Sub", "Mul", "Div", "Concat"}  # all of their inputs may be tensors
MODULES = {"BatchNormalization": "batch_normalization"}  # others have the operator's name
IN_GRAPHS = {"Constant", "Shape"}  # computed when the graph is read


@dataclass(frozen=True)
class Case:
    """A model that computes what is constant in a network from initializers, and one set of inputs and outputs."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


def _cases() -> Iterator[Case]:
    """Of the operators that we know alone: making all of them takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some divide by zero
        for operator in OPERATORS:
            import_module(f"{node.__name__}.{MODULES.get(operator, operator.lower())}")
    for case in node._NodeTestCases:
        operators = {proto.op_type for proto in case.model.graph.node}
        if operators & set(OPERATORS) and operators <= {*OPERATORS, *IN_GRAPHS}:
            yield _case(case)


def _case(case: Any) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values, expected = case.data_sets[0]
    given = dict(zip((value.name for value in model.graph.input), values, strict=True))
    outputs = dict(zip((value.name for value in model.graph.output), expected, strict=True))
    fixed = {
        name
        for proto in model.graph.node
        for name in proto.input[1:]
        if name in given and proto.op_type not in SYMMETRIC
    }
    kept = [value for value in model.graph.input if value.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name in sorted(fixed):
        value = given.pop(name)
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = name
    if all(getattr(array, "ndim", 0) == 1 for array in (*given.values(), *outputs.values())):
        for value in (*model.graph.input, *model.graph.output):  # a sample becomes a batch of one
            size = value.type.tensor_type.shape.dim.add()
            size.dim_value, value.type.tensor_type.shape.dim[0].dim_value = (
                value.type.tensor_type.shape.dim[0].dim_value,
                1,
            )
        given, outputs = ({name: array[None] for name, array in arrays.items()} for arrays in (given, outputs))
    return Case(case.name, model, given, outputs)


CASES = {case.name: case for case in _cases()}

# Why ONNX has tests of these operators that are refused: by the name of the case, or the start of it.
REFUSED = {
    "other types than FP32": (
        *(f"test_{operator}_{kind}" for operator in ("add", "sub", "mul", "div") for kind in ("int", "uint")),
        "test_cast_", "test_castlike", "test_clip_default_int8", "test_dequantizelinear", "test_identity_opt",
        "test_identity_sequence", "test_maxpool_2d_uint8", "test_quantizelinear", "test_edge_pad", "test_reflect_pad",
        "test_wrap_pad", "test_averagepool_fp16", "test_maxpool_fp16",
    ),
    "three dimensions": ("test_averagepool_3d", "test_maxpool_3d", "test_unsqueeze_"),
    "more than values": ("test_maxpool_with_argmax", "test_dropout_default_mask"),
    "as in training": ("test_training_dropout", "test_batchnorm_example_training", "test_batchnorm_epsilon_training"),
    "samples that are mixed": (
        "test_concat_1d_axis_0", "test_concat_2d_axis_0", "test_concat_2d_axis_negative_2", "test_concat_3d_axis_0",
        "test_concat_3d_axis_negative_3", "test_flatten_axis0", "test_flatten_axis2", "test_flatten_axis3",
        "test_flatten_negative_axis4", "test_flatten_negative_axis2", "test_flatten_negative_axis1", "test_squeeze",
        "test_gemm_transposeA", "test_gemm_all_attributes", "test_gemm_default_matrix_bias", "test_reduce_mean",
        "test_logsoftmax_axis_0", "test_softmax_axis_0", "test_reshape",
    ),
    "other axes than that of the channels": (
        "test_concat_3d_axis_2", "test_concat_3d_axis_negative_1", "test_softmax_", "test_logsoftmax_",
    ),
    "operands that aren't one value for each channel": (
        "test_add_bcast", "test_sub_bcast", "test_mul_bcast", "test_div_bcast",
    ),
    "products of tensors": ("test_matmul_",),
    "inputs of one dimension": ("test_group_normalization",),
}  # fmt: skip
COMPUTED = (
    "test_unsqueeze_axis_1", "test_unsqueeze_axis_2", "test_squeeze_negative_axes", "test_softmax_example",
    "test_softmax_large_number", "test_logsoftmax_example_1", "test_logsoftmax_large_number", "test_matmul_2d",
)  # fmt: skip
"""Those that begin like a refused case."""


def refused(name: str) -> bool:
    return name not in COMPUTED and any(name.startswith(start) for starts in REFUSED.values() for start in starts)


def _merged(cases: list[Case]) -> onnx.ModelProto:
    """One model that computes several cases side by side."""
    models = [compose.add_prefix(case.model, f"{case.name}/", rename_nodes=True) for case in cases]
    whole = models[0]
    for model in models[1:]:
        for field in ("node", "initializer", "input", "output"):
            getattr(whole.graph, field).extend(getattr(model.graph, field))
    return whole


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, NDArray[np.float32]]]:
    """What the library gives, by case and output. Cases of the same opset and batch size are compiled together."""
    together = defaultdict(list)
    for case in CASES.values():
        if not refused(case.name):
            batch = len(next(iter(case.inputs.values())))
            together[case.model.opset_import[0].version, batch].append(case)
    computed: dict[str, dict[str, NDArray[np.float32]]] = {}
    for group in together.values():
        built = build(_merged(group), tmp_path_factory.mktemp("operators"))
        inputs = {f"{case.name}/{name}": values for case in group for name, values in case.inputs.items()}
        with built.library() as library:
            given = library.run(inputs)
        computed |= {case.name: {name: given[f"{case.name}/{name}"] for name in case.outputs} for case in group}
    return computed


@pytest.mark.parametrize("name", [name for name in CASES if not refused(name)])
def test_what_onnx_expects(name: str, outputs: dict[str, dict[str, NDArray[np.float32]]]) -> None:
    for output, expected in CASES[name].outputs.items():
        assert outputs[name][output].shape == expected.shape
        assert parity(outputs[name][output], expected) < 1e-4  # some are given with four digits


@pytest.mark.parametrize("name", [name for name in CASES if refused(name)])
def test_the_rest_is_refused(name: str, tmp_path: Path) -> None:
    onnx.save(CASES[name].model, tmp_path / "model.onnx")
    with pytest.raises(GraphError):
        lay_out(fuse(read(tmp_path / "model.onnx")))


def test_every_operator_has_a_case() -> None:
    known = {proto.op_type for name in CASES if not refused(name) for proto in CASES[name].model.graph.node}
    # The tests of these have other axes or types. Those of networks have them as they are here.
    assert set(OPERATORS) - known <= {"Cast", "DequantizeLinear", "QuantizeLinear", "ReduceMean", "Reshape"}
