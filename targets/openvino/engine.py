"""OpenVINO as an engine; docs/engine-protocol.md says what the functions and `Model` owe to the worker."""

import logging
import platform
from pathlib import Path

import openvino

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # as its CPU plugin names them


def load(model, batch_size, threads, precision):
    return Model(model, threads, precision)


class Model:
    def __init__(self, model, threads, precision):
        self.model = model
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }
        if precision == "fp32":  # by itself it takes bf16 where the processor has that, beside integers too
            self.settings["INFERENCE_PRECISION_HINT"] = "f32"
        self.compiled = openvino.Core().compile_model(model, "CPU", self.settings)

    def info(self):
        return {
            "runtime": "openvino",
            "version": openvino.__version__.split("-")[0],
            "precision": self._precision(),
        }

    def _precision(self):
        """In what its layers compute, as it compiled them: "f32", "bf16", "f32, u8" where some are in integers."""
        told = [operation.get_rt_info() for operation in self.compiled.get_runtime_model().get_ops()]
        layers = [info for info in told if info["layerType"].value in LAYERS]
        return ", ".join(sorted({info["runtimePrecision"].value for info in layers}))

    def run(self, inputs):
        request = self._request(inputs)
        request.infer()
        return {output.get_any_name(): request.get_tensor(output).data.copy() for output in self.compiled.outputs}

    def bind(self, inputs):
        return self._request(inputs).infer

    def profile(self, inputs, repeats):
        """Mean seconds of each operation. It is compiled anew: one that counts them is slower as a whole."""
        compiled = openvino.Core().compile_model(self.model, "CPU", {**self.settings, "PERF_COUNT": True})
        request = self._request(inputs, compiled)
        rows = {}
        for _ in range(repeats):
            request.infer()
            for layer in request.get_profiling_info():
                if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                    row = rows.setdefault(layer.node_name, {"operator": layer.node_type, "seconds": 0.0})
                    row["seconds"] += layer.real_time.total_seconds() / repeats
        return [{"name": name, **row} for name, row in rows.items()]

    def _request(self, inputs, compiled=None):
        # Called with arrays, a compiled model would convert what is of another type; a tensor of its own is refused.
        request = (compiled or self.compiled).create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return request


def build(model, stem, precision, batch_sizes, batches):
    """Quantization after training by NNCF, which is OpenVINO's own tool for it."""
    if precision != "int8":
        raise ValueError(f"{precision} needs no model of its own; int8 does")
    import nncf  # not in `load`: it takes longer than everything else there
    import rich

    nncf.set_log_level(logging.ERROR)
    rich.reconfigure(quiet=True)  # its progress bars
    source = openvino.Core().read_model(model)
    advanced = nncf.AdvancedQuantizationParameters(
        # By default a range is the mean of those of the batches: narrower, and another one for each batch size.
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
        disable_bias_correction=True,  # measured to be further from float with it
        # Its convolutions can do without it, its matrix products can't. None: what NNCF takes for the first layers.
        overflow_fix=nncf.OverflowFix.ENABLE if saturates() and multiplies_matrices(source) else None,
    )
    quantized = nncf.quantize(
        source,
        nncf.Dataset(batches),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if attends(source) else None,
        advanced_parameters=advanced,
    )
    path = f"{stem}.xml"
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


def weights(path):
    """The int8 constants of a model, by the layer that reads them: NNCF leaves them no names."""
    arrays = {
        reader(operation).get_friendly_name().removesuffix("/WithoutBiases"): operation.data
        for operation in openvino.Core().read_model(path).get_ordered_ops()
        if operation.get_type_name() == "Constant" and operation.get_element_type() == openvino.Type.i8
    }
    return {name: [int((array == 0).sum()), array.size] for name, array in arrays.items()}


def attends(model):
    """Whether it has attention: a product of matrices that are both computed."""
    products = [operation for operation in model.get_ops() if operation.get_type_name() == "MatMul"]
    factors = [{value.get_node().get_type_name() for value in product.input_values()} for product in products]
    return any("Constant" not in types for types in factors)


def multiplies_matrices(model):
    """Whether that is most of what it does."""
    types = [operation.get_type_name() for operation in model.get_ops()]
    return types.count("MatMul") > types.count("Convolution") + types.count("GroupConvolution")


def saturates():
    """Whether this is an x86 processor without VNNI: pairs of products of uint8 and int8 are added in 16 bits there,
    which saturate unless weights have 7 bits."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return platform.machine() == "x86_64" and not {"avx512_vnni", "avx_vnni"} & set(flags)


def reader(constant):
    """The layer that a constant reaches, past what makes floats of it."""
    operation = constant
    while operation.get_type_name() in ("Constant", "Convert", "Subtract", "Multiply", "Reshape"):
        operation = next(iter(operation.output(0).get_target_inputs())).get_node()
    return operation
