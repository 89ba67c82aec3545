"""OpenVINO as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

import openvino


def load(model, batch_size, threads):
    return Model(model, threads)


class Model:
    def __init__(self, model, threads):
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # by default it takes bf16 where the processor has that
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }
        self.compiled = core.compile_model(model, "CPU", settings)

    def info(self):
        return {
            "runtime": "openvino",
            "version": openvino.__version__.split("-")[0],
            "precision": self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }

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
