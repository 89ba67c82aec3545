"""A compiled library as an engine; docs/engine-protocol.md says what the functions and `Model` owe to the worker.

`acdc_export.native` compiles and loads. It knows nothing of the rest of the package, and it is all that is taken of it.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

from acdc_export import native


def load(model, batch_size, threads, precision):
    # It takes any batch size, and computes in what was compiled. The process is pinned already.
    return Model(native.Library(model, threads=threads))


class Model:
    def __init__(self, library):
        self.library = library

    def info(self):
        return {
            "runtime": "native",
            "version": self.library.version,
            "instruction_set": self.library.instruction_set,
            "precision": self.library.precision,
            "notes": [AMX] if "amx_int8" in Path("/proc/cpuinfo").read_text().split() else [],
        }

    def run(self, inputs):
        return self.library.run(inputs)

    def bind(self, inputs):
        return self.library.bind(inputs)

    def profile(self, inputs, repeats):
        """The least that each layer takes for a sample: it computes a batch sample by sample."""
        layers = self.library.profile(inputs, repeats)
        return [{"name": layer.name, "operator": layer.operator, "seconds": layer.seconds} for layer in layers]


AMX = (
    "This processor has AMX, which multiplies dense INT8 matrices several times as fast as the instructions that "
    "sparse kernels use: a dense INT8 network may be faster here."
)


class Unavailable(Exception):
    def __init__(self, message, remedy):
        super().__init__(message)
        self.message, self.remedy = message, remedy


def can_build(precision):
    if importlib.util.find_spec("onnx") is None:
        raise Unavailable("onnx is not installed, which compiling needs.", "Run: pip install 'acdc-export[export]'")
    from acdc_export.native import toolchain  # not above: `load` does without it

    try:
        toolchain.compiler()
    except native.CompilerMissing as error:
        raise Unavailable(error.message, error.remedy) from error


def build(model, stem, precision, batch_sizes, batches):
    """The library and what it was made from. Where a plan lies beside the model, the same library is made again."""
    can_build(precision)
    plan = Path(model).with_suffix(".plan.json")
    compiled = native.compile(
        Path(model), Path(stem), threads=len(os.sched_getaffinity(0)), plan=plan if plan.is_file() else None
    )
    shutil.copyfile(model, f"{stem}.onnx")
    return str(compiled.library)


def deployed(path):
    """The header is for who compiles against it; the weights are in the library."""
    return [path]


def weights(path):
    """As the plan counts them, by the names of weights: the plan has the compiler's names of nodes."""
    import onnx

    stem = path[: -len(".so")]
    graph = onnx.load(f"{stem}.onnx").graph
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    stored = {tensor.name for tensor in graph.initializer}
    names = {}
    for index, node in enumerate(graph.node):
        held = [name for name in (dequantized.get(name, name) for name in node.input) if name in stored]
        if held:
            names[node.name or f"{node.op_type}_{index}"] = held[0]
    layers = json.loads(Path(f"{stem}.plan.json").read_text())["layers"]
    return {names.get(layer["name"], layer["name"]): [layer["zeros"], layer["weights"]] for layer in layers}
