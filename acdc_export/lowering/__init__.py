"""From an ONNX file and a deployment to the files that a runtime loads, with the zeros counted after every step.

`lower` is the whole way. `transform` is its first part, ONNX to ONNX: the target's passes, and INT8 by one of our
schemes. `calibrate` finds what quantization takes. `audit` counts zeros, and `unsupported` names operators off the
fast path.
"""

from ..records.inspection import WeightAudit
from .audit import audit, contents, count, load, pruned
from .calibrate import QuantizationInputs, calibrate
from .deployment import Deployment
from .diagnose import unsupported
from .lower import Int8Layers, LoweredModel, lower
from .quantize import Calibrated, Calibration, Quantization
from .transform import Step, TransformedGraph, transform

__all__ = [
    "Calibrated",
    "Calibration",
    "Deployment",
    "Int8Layers",
    "LoweredModel",
    "Quantization",
    "QuantizationInputs",
    "Step",
    "TransformedGraph",
    "WeightAudit",
    "audit",
    "calibrate",
    "contents",
    "count",
    "load",
    "lower",
    "pruned",
    "transform",
    "unsupported",
]
