"""ONNX in, ONNX out: from the canonical graph of a pair to the form that a runtime takes, with the zeros counted."""

from ..records.inspection import WeightAudit
from .audit import audit, count, load, pruned
from .diagnose import unsupported
from .lower import Lowered, Step, lower
from .quantize import Calibrated, Calibration, Quantization

__all__ = [
    "Calibrated",
    "Calibration",
    "Lowered",
    "Quantization",
    "Step",
    "WeightAudit",
    "audit",
    "count",
    "load",
    "lower",
    "pruned",
    "unsupported",
]
