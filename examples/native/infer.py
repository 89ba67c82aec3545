"""A compiled model in Python, with ctypes and numpy only: inputs from an .npz file, outputs as text.

    python -m acdc_export.native model.onnx
    python infer.py ./model.so inputs.npz

The file holds an array of shape (batch, ...) for each input, by its name. Where acdc-export is installed,
`acdc_export.native.Library` does the same.
"""

import ctypes
import sys

import numpy as np

REALS = ctypes.POINTER(ctypes.c_float)


class Port(ctypes.Structure):  # as in model.h
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("dimensions", ctypes.c_int * 3),
        ("size", ctypes.c_long),
    ]

    @property
    def shape(self):
        return tuple(self.dimensions[: self.rank])


class Description(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_int),
        *[(text, ctypes.c_char_p) for text in ("name", "hash", "version", "precision", "instruction_sets")],
        ("input_count", ctypes.c_int),
        ("inputs", ctypes.POINTER(Port)),
        ("output_count", ctypes.c_int),
        ("outputs", ctypes.POINTER(Port)),
        ("layer_count", ctypes.c_int),
        ("weight_bytes", ctypes.c_long),
        ("arena_bytes", ctypes.c_long),
    ]


class Model:
    def __init__(self, path, threads=2):
        self.c = ctypes.CDLL(path)
        self.c.model_describe.restype = ctypes.POINTER(Description)
        self.c.model_error.restype = ctypes.c_char_p
        self.c.model_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(REALS), ctypes.POINTER(REALS)]
        self.c.model_destroy.argtypes = [ctypes.c_void_p]
        about = self.c.model_describe().contents
        self.inputs, self.outputs = about.inputs[: about.input_count], about.outputs[: about.output_count]
        self.model = ctypes.c_void_p()
        self.check(self.c.model_create(threads, None, 0, ctypes.byref(self.model)))

    def run(self, arrays):
        """Compute a batch: arrays by name, in and out."""
        given = [np.ascontiguousarray(arrays[port.name.decode()], np.float32) for port in self.inputs]
        batch = len(given[0])
        for port, array in zip(self.inputs, given, strict=True):
            if array.shape != (batch, *port.shape):  # the library takes memory, and can't check its shape
                raise ValueError(f"{port.name.decode()} has shape {array.shape}, not {(batch, *port.shape)}")
        results = [np.empty((batch, *port.shape), np.float32) for port in self.outputs]
        self.check(self.c.model_run(self.model, batch, pointers(given), pointers(results)))
        return {port.name.decode(): array for port, array in zip(self.outputs, results, strict=True)}

    def close(self):
        self.c.model_destroy(self.model)

    def check(self, status):
        if status:
            raise RuntimeError(self.c.model_error(status).decode())


def pointers(arrays):
    return (REALS * len(arrays))(*(array.ctypes.data_as(REALS) for array in arrays))


if __name__ == "__main__":
    model = Model(sys.argv[1])
    with np.load(sys.argv[2]) as inputs:
        for name, array in model.run(inputs).items():
            print(name, array.shape, *array.reshape(-1))
    model.close()
