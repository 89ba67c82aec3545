"""DeepSparse as an engine; docs/engine-protocol.md says what `load` and `Model` owe to the worker."""

import logging
import os

import deepsparse
import onnx
from deepsparse.cpu import cpu_architecture
from deepsparse.utils import join_engine_outputs, split_engine_inputs

logging.getLogger("deepsparse.engine").setLevel(logging.ERROR)  # it warns of `batch_size=None`

OPEN = 2**32 - 1  # how it shows a batch size that a graph leaves open: -1, without a sign


def load(model, batch_size, threads, precision):
    # It computes in what is in the graph: integers where those are, float32 everywhere else. Without VNNI it has two
    # ways to multiply integers. The fast one adds pairs of products in 16 bits: enough where weights have 7 bits.
    if precision == "int8" and not cpu_architecture().vnni and greatest_weight(model) < 64:
        os.environ["NM_FAST_VNNI_EMULATION"] = "1"
    # None: that of the graph, which may be a micro-batch (micro_batches in target.toml).
    engine = deepsparse.Engine(model, batch_size=None, num_cores=threads)
    if engine.input_shapes[0][0] == OPEN:  # in a target of one's own, without the pass `static_batch`
        engine = deepsparse.Engine(model, batch_size=batch_size, num_cores=threads)
    return Model(engine, batch_size)


class Model:
    def __init__(self, engine, batch_size):
        self.engine, self.batch_size = engine, batch_size
        self.micro_batch = engine.input_shapes[0][0]

    def info(self):
        cpu = cpu_architecture()
        return {
            "runtime": "deepsparse",
            "version": deepsparse.__version__,
            "instruction_set": f"{cpu.isa}_vnni" if cpu.vnni else cpu.isa,
            "supported_ops": self.engine.fraction_of_supported_ops,
        }

    def run(self, inputs):
        return dict(zip(self.engine.output_names, self.bind(inputs)()))

    def bind(self, inputs):
        arrays = self._in_order(inputs)
        if self.micro_batch == self.batch_size:
            return lambda: self.engine.run(arrays, val_inp=False)
        return lambda: self._run_in_micro_batches(arrays)

    def _run_in_micro_batches(self, arrays):
        # The last micro-batch is filled up with copies.
        parts, rows = split_engine_inputs(arrays, self.micro_batch)
        return join_engine_outputs([self.engine.run(part, val_inp=False) for part in parts], rows)

    def _in_order(self, inputs):
        # Its own check looks at the batch size only.
        for name, (_, *sample) in zip(self.engine.input_names, self.engine.input_shapes):
            shape = (self.batch_size, *sample)
            if inputs[name].shape != shape:
                raise ValueError(f"'{name}' has shape {inputs[name].shape}, and the model takes {shape}")
        return [inputs[name] for name in self.engine.input_names]


def greatest_weight(model):
    """The greatest magnitude of the weights of a model's integer operators."""
    graph = onnx.load(model).graph
    read = {node.input[1] for node in graph.node if node.op_type in ("ConvInteger", "MatMulInteger")}
    arrays = (onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name in read)
    return max((abs(array.astype(int)).max() for array in arrays), default=0)
