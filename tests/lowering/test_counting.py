"""Zeros in the forms that other tools write: each file here is 75 % zero, or says that it can't be counted."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from acdc_export.errors import UsageError
from acdc_export.inspection import inspect
from acdc_export.lowering import load
from acdc_export.lowering.audit import contents
from acdc_export.present import text

CHANNELS, FEATURES = 8, 16


def weight(seed=0):
    """(outputs, inputs) with 75 % zeros; nothing else is near zero."""
    random = np.random.default_rng(seed)
    array = random.choice([-1.0, 1.0], (CHANNELS, FEATURES)) * random.uniform(0.3, 1.0, (CHANNELS, FEATURES))
    array.ravel()[random.permutation(array.size)[: array.size * 3 // 4]] = 0
    return array.astype(np.float32)


W = weight()


def saved(path, nodes, initializers, inputs=FEATURES, sparse=(), opset=21, **more):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets, **more), path)
    return path


def node(*arguments, **attributes):
    return helper.make_node(*arguments, **attributes)


def sparse_tensor(array, name):
    flat = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[flat], name)
    indices = numpy_helper.from_array(flat.astype(np.int64), f"{name}_indices")
    return helper.make_sparse_tensor(values, indices, list(array.shape))


UNSIGNED = (np.round(W * 100) + 128).astype(np.uint8)
ZEROS = np.arange(100, 100 + CHANNELS, dtype=np.uint8)  # a zero point for each output channel
BY_CHANNEL = (np.round(W * 90) + ZEROS[:, None]).astype(np.uint8)
SCALES = np.full(CHANNELS, 0.01, dtype=np.float32)
MUL = node("MatMul", ["x", "w"], ["y"])
FORMS = {
    "in a Constant node": ([node("Constant", [], ["w"], value=numpy_helper.from_array(W.T.copy())), MUL], {}),
    "behind Identity": ([node("Identity", ["v"], ["w"]), MUL], {"v": W.T.copy()}),
    "behind Cast": ([node("Cast", ["v"], ["w"], to=TensorProto.FLOAT), MUL], {"v": W.T.astype(np.float16)}),
    "behind Transpose": ([node("Transpose", ["v"], ["w"]), MUL], {"v": W}),
    "behind Reshape": (
        [node("Reshape", ["v", "s"], ["w"]), MUL],
        {"v": W.T.copy().ravel(), "s": np.array([FEATURES, CHANNELS])},
    ),
    "dequantized from uint8": (
        [node("DequantizeLinear", ["v", "s", "z"], ["w"]), MUL],
        {"v": UNSIGNED.T.copy(), "s": np.float32(0.01), "z": np.uint8(128)},
    ),
    "dequantized by channel": (
        [node("DequantizeLinear", ["v", "s", "z"], ["w"], axis=1), MUL],
        {"v": BY_CHANNEL.T.copy(), "s": SCALES, "z": ZEROS},
    ),
    "dequantized and then transposed": (
        [node("DequantizeLinear", ["v", "s", "z"], ["u"], axis=0), node("Transpose", ["u"], ["w"]), MUL],
        {"v": BY_CHANNEL, "s": SCALES, "z": ZEROS},
    ),
    "as a filter behind Transpose": (
        [
            node("Unsqueeze", ["x", "a"], ["x3"]),
            node("Transpose", ["v"], ["t"], perm=[1, 0]),
            node("Unsqueeze", ["t", "a"], ["w"]),
            node("Conv", ["x3", "w"], ["y"]),
        ],
        {"v": W.T.copy(), "a": np.array([2])},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_zeros_are_counted_wherever_the_weight_is_kept(form, tmp_path):
    nodes, initializers = FORMS[form]
    (counted,) = contents(load(saved(tmp_path / "net.onnx", nodes, initializers))).weights
    assert (counted.zeros, counted.total) == (int((W == 0).sum()), W.size)


def test_groups_lie_along_the_input_channels_behind_a_transpose(tmp_path):
    blocks = np.repeat(np.tile([1.0, 0, 0, 0], (CHANNELS, 1)), 4, axis=1).astype(np.float32)  # blocks of 4 inputs
    for name, nodes, value in (
        ("plain", [MUL], {"w": blocks.T.copy()}),
        ("turned", [node("Transpose", ["v"], ["w"]), MUL], {"v": blocks}),
    ):
        (counted,) = contents(load(saved(tmp_path / f"{name}.onnx", nodes, value))).weights
        groups = counted.patterns["block4"]
        assert (groups.zero, groups.groups) == (CHANNELS * 3, CHANNELS * 4), name


def test_sparse_initializers_are_counted(tmp_path):
    path = saved(tmp_path / "net.onnx", [MUL], {}, sparse=[sparse_tensor(W.T.copy(), "w")])
    (counted,) = contents(load(path)).weights
    assert (counted.zeros, counted.total) == (96, 128)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = iter(
            [{"x": np.random.default_rng(at).normal(size=(4, FEATURES)).astype(np.float32)} for at in range(4)]
        )

    def get_next(self):
        return next(self.left, None)


@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8], ids=["uint8", "int8"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_files_of_onnx_runtimes_quantizer_are_counted(form, kind, tmp_path):
    second = weight(1)[:, :CHANNELS].copy()
    nodes = [MUL, node("Gemm", ["y", "w2", "b"], ["z"], transB=1)]
    nodes[0] = node("MatMul", ["x", "w"], ["h"])
    nodes[1] = node("Gemm", ["h", "w2", "b"], ["y"], transB=1)
    source = saved(
        tmp_path / "net.onnx",
        nodes,
        {"w": W.T.copy(), "w2": second, "b": np.zeros(CHANNELS, dtype=np.float32)},
        opset=17,
    )
    quantized = tmp_path / "quantized.onnx"
    if form == "dynamic":
        quantize_dynamic(source, quantized, weight_type=kind)
    else:
        quantize_static(
            source, quantized, Reader(), quant_format=QuantFormat[form], weight_type=kind, activation_type=kind
        )
    holds = contents(load(quantized))
    assert not holds.uncounted
    assert [(counted.zeros, counted.total) for counted in holds.weights] == [
        (96, 128),
        (int((second == 0).sum()), second.size),
    ]


def test_what_is_not_counted_is_named_and_never_shown_as_nothing(tmp_path):
    lstm = np.zeros((1, 4 * CHANNELS, FEATURES), dtype=np.float32)
    nodes = [
        MUL,
        node("Unsqueeze", ["x", "a"], ["x3"]),
        node("LSTM", ["x3", "l", "r"], ["o"], hidden_size=CHANNELS),
    ]
    initializers = {
        "w": W.T.copy(),
        "a": np.array([0]),
        "l": lstm,
        "r": np.zeros((1, 4 * CHANNELS, CHANNELS), dtype=np.float32),
    }
    path = saved(tmp_path / "net.onnx", nodes, initializers)
    shown = text(inspect(path))
    assert "75.00 % zeros in 128 weights" in shown
    assert "not counted" in shown
    assert "LSTM" in shown
    del initializers["w"]
    nodes[0] = node("Identity", ["x"], ["y"])
    with pytest.raises(UsageError, match="None of the weights in .* can be counted"):
        inspect(saved(tmp_path / "recurrent.onnx", nodes, initializers))
    assert "no weights" in text(inspect(saved(tmp_path / "none.onnx", [node("Relu", ["x"], ["y"])], {})))
