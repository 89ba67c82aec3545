"""ONNX Runtime as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

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

    def prepare(self, inputs):
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in self.outputs:
            binding.bind_output(name)
        return lambda: self.session.run_with_iobinding(binding)
