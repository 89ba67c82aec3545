"""Bias correction: the bias gives back what rounding a weight takes from the mean of a layer's output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .layers import Layer, constant


def corrected(layer: Layer, lost: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corrected bias, (output channels,).

    E[w x] - E[w' x] = (w - w') E[x]; Nagel et al. 2019, section 4.2.

    Args:
        lost: w - w', what rounding took from the weight: (outputs, inputs of a group, ...) of a Conv, otherwise
            (inputs, outputs).
        mean: of the activation, (input channels,).
    """
    channels = lost.shape[0] if layer.node.op_type == "Conv" else lost.shape[-1]
    bias = np.zeros(channels) if layer.bias is None else constant(layer.bias).astype(np.float64).reshape(-1)
    if layer.node.op_type == "Conv":
        by_channel = lost.reshape(*lost.shape[:2], -1).sum(axis=2, dtype=np.float64)  # (outputs, inputs of a group)
        inputs = mean.reshape(layer.groups, 1, -1)
        correction = (by_channel.reshape(layer.groups, -1, lost.shape[1]) * inputs).sum(axis=2).reshape(-1)
    else:
        correction = mean @ lost.astype(np.float64)
    return bias + correction  # type: ignore[no-any-return]
