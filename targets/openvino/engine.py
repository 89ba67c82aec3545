"""OpenVINO as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

import openvino

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # as its CPU plugin names them


def load(model, batch_size, threads, precision):
    return Model(model, threads, precision)


class Model:
    def __init__(self, model, threads, precision):
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }
        if precision == "fp32":  # by itself it takes bf16 where the processor has that, beside integers too
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)

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

    def prepare(self, inputs):
        return self._request(inputs).infer

    def _request(self, inputs):
        # Called with arrays, a compiled model would convert what is of another type; a tensor of its own is refused.
        request = self.compiled.create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return request
