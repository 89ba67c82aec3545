"""How INT8 changes a network's logits, by the kind of range and correction: the table of quantization.md.

    python -m benchmarks.integers runs/digits digits [SCHEME]

For both halves of a pair it prints the root mean square difference of the logits from FP32, and the accuracy, on the
test split of a built-in data set. Calibration takes 512 samples of the training split. The dequantized reference
computes the logits, so no engine's own rounding is in them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from acdc_export import data, lowering
from acdc_export.lowering import quantize
from acdc_export.lowering.passes import fold_batchnorm
from acdc_export.lowering.quantize.calibration import Method
from acdc_export.pair import HALVES, Pair

SAMPLES, BATCH = 512, 64
METHODS: tuple[Method, ...] = ("min-max", "percentile", "mse")
CORRECTIONS = {
    "neither": (False, False),
    "equalized": (True, False),
    "bias corrected": (False, True),
    "both": (True, True),
}
Arrays = Mapping[str, NDArray[Any]]


def main(pair: Pair, name: str, scheme: str) -> None:
    spec = pair.record.inputs[0].name
    training = [{spec: x} for x, _ in data.load(f"{name}:train").sample(SAMPLES).batches(BATCH)]
    test = list(data.load(f"{name}:test").batches(BATCH))
    labels = np.concatenate([y for _, y in test])
    inputs: list[Arrays] = [{spec: x} for x, _ in test]  # type: ignore[dict-item]
    output = pair.record.outputs[0].name
    with tempfile.TemporaryDirectory() as scratch:
        for half in HALVES:
            expected = _run(pair.onnx(half), inputs, output)
            print(f"{half}: {_right(expected, labels):.2f} % right in FP32; root mean square difference, % right")
            for method in METHODS:
                cells = []
                for equalized, corrected in CORRECTIONS.values():
                    path = _dequantized(pair.onnx(half), Path(scratch), training, scheme, method, equalized, corrected)
                    logits = _run(path, inputs, output)
                    cells.append(f"{np.sqrt(np.square(logits - expected).mean()):.4f} {_right(logits, labels):6.2f}")
                print(f"  {method:<12}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def _dequantized(
    source: Path, folder: Path, training: list[Any], scheme: str, method: Method, equalized: bool, corrected: bool
) -> Path:
    folded = folder / "folded.onnx"
    if equalized:
        quantize.fold(source, folded)
    else:
        model = lowering.load(source)
        fold_batchnorm.run(model, batch_size=1)
        ir.save(model, folded)
    watched = quantize.instrument(folded, folder / "instrumented.onnx", (), [scheme])
    session = onnxruntime.InferenceSession(folder / "instrumented.onnx")
    names = [value.name for value in session.get_outputs()]
    calibration = quantize.calibrate(
        lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), training, watched, method
    )
    if not corrected:
        calibration = replace(calibration, means={key: 0 * mean for key, mean in calibration.means.items()})
    lowering.transform(
        source,
        folder / "int8.onnx",
        passes=("fold_batchnorm",),
        batch_size=BATCH,
        quantization=lowering.Quantization(lowering.Calibrated(folded, calibration), scheme),
    )
    quantize.dequantized.write(folder / "int8.onnx", folder / "dequantized.onnx")
    return folder / "dequantized.onnx"


def _run(path: Path, inputs: list[Arrays], output: str) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run([output], batch)[0] for batch in inputs])


def _right(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    return 100 * float((logits.argmax(axis=1) == labels).mean())


if __name__ == "__main__":
    main(Pair.load(sys.argv[1]), sys.argv[2], (*sys.argv[3:], "convinteger")[0])
