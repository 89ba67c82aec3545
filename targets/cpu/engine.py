"""DeepSparse as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

import os

import deepsparse
import onnx
from deepsparse.cpu import cpu_architecture


def load(model, batch_size, threads, precision):
    # It computes in what is in the graph: integers where those are, float32 everywhere else. Without VNNI it has two
    # ways to multiply integers. The fast one adds pairs of products in 16 bits: enough where weights have 7 bits.
    if precision == "int8" and not cpu_architecture().vnni and greatest_weight(model) < 64:
        os.environ["NM_FAST_VNNI_EMULATION"] = "1"
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


def greatest_weight(model):
    """The greatest magnitude of the weights of a model's integer operators."""
    graph = onnx.load(model).graph
    read = {node.input[1] for node in graph.node if node.op_type in ("ConvInteger", "MatMulInteger")}
    arrays = (onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name in read)
    return max((abs(array.astype(int)).max() for array in arrays), default=0)
