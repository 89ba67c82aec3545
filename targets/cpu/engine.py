"""DeepSparse as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

import deepsparse
from deepsparse.cpu import cpu_architecture


def load(model, batch_size, threads, precision):
    # It computes in what is in the graph: integers where those are, float32 everywhere else.
    return Model(deepsparse.Engine(model, batch_size=batch_size, num_cores=threads))


class Model:
    def __init__(self, engine):
        self.engine = engine

    def info(self):
        cpu = cpu_architecture()
        return {
            "runtime": "deepsparse",
            "version": deepsparse.__version__,
            "instruction_set": f"{cpu.isa}_vnni" if cpu.vnni else cpu.isa,
            "supported_ops": self.engine.fraction_of_supported_ops,
        }

    def run(self, inputs):
        outputs = self.engine.run(self._in_order(inputs), val_inp=False)
        return dict(zip(self.engine.output_names, outputs))

    def prepare(self, inputs):
        arrays = self._in_order(inputs)
        return lambda: self.engine.run(arrays, val_inp=False)

    def _in_order(self, inputs):
        # Its own check looks at the batch size only.
        for name, shape in zip(self.engine.input_names, self.engine.input_shapes):
            if inputs[name].shape != tuple(shape):
                raise ValueError(f"'{name}' has shape {inputs[name].shape}, and the model takes {tuple(shape)}")
        return [inputs[name] for name in self.engine.input_names]
