"""ONNX Runtime as an engine; docs/engine-protocol.md says what the functions and `Model` owe to the worker."""

import logging
import platform
from pathlib import Path

import onnxruntime


def load(model, batch_size, threads, precision):
    # The batch size is in the model, or the model takes any. By itself it computes in what is in the graph.
    return Model(model, threads, "int8" if precision == "int8" else "fp32")


class Model:
    def __init__(self, model, threads, precision):
        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors; a warning at every launch helps nobody
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def info(self):
        return {"runtime": "onnxruntime", "version": onnxruntime.__version__, "precision": self.precision}

    def run(self, inputs):
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs)))

    def bind(self, inputs):
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in self.outputs:
            binding.bind_output(name)
        return lambda: self.session.run_with_iobinding(binding)


def build(model, stem, precision, batch_sizes, batches):
    """Static quantization as its documentation has it for the CPU: QDQ, a scale for each channel of a weight."""
    if precision != "int8":
        raise ValueError(f"{precision} needs no model of its own; int8 does")
    from onnxruntime import quantization  # it imports onnx, which `load` has no use for

    logging.getLogger().setLevel(logging.ERROR)  # it asks for a preparation that our graphs have behind them
    # What its kernels for either are written for.
    activations = quantization.QuantType.QUInt8 if platform.machine() == "x86_64" else quantization.QuantType.QInt8
    path = f"{stem}.onnx"
    quantization.quantize_static(
        model,
        path,
        Calibration(batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=saturates(),
        activation_type=activations,
        weight_type=quantization.QuantType.QInt8,  # symmetric: 0 stays 0
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    return path


def weights(path):
    """What reads int8 out of the file as it is: its weights. Scales are float, biases int32."""
    import onnx

    graph = onnx.load(path).graph
    read = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    arrays = {
        tensor.name.removesuffix("_quantized"): onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name in read
    }
    return {name: [int((array == 0).sum()), array.size] for name, array in arrays.items()}


def saturates():
    """Whether this is an x86 processor without VNNI. There, pairs of products of uint8 and int8 are added in 16 bits,
    which saturate: with weights of 8 bits that costs points of accuracy, with weights of 7 it can't happen."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return platform.machine() == "x86_64" and not {"avx512_vnni", "avx_vnni"} & set(flags)


class Calibration:
    """What `quantize_static` reads batches from."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)
