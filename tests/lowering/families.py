"""Small networks of every family, as torch's exporter writes them; and what is asked of their lowered graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc_export import config, lowering
from acdc_export.lowering import quantize
from acdc_export.pair import Pair

CPU = config.load_target("cpu").graph


def lowered(
    pair: Pair, path: Path, batch_size: int = 2, passes: tuple[str, ...] = CPU.passes
) -> lowering.TransformedGraph:
    """The sparse half as DeepSparse gets it."""
    return lowering.transform(
        pair.onnx("sparse"), path, passes=passes, batch_size=batch_size, ir_version=CPU.ir_version, opset=CPU.opset
    )


def run(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


# ---------------------------------------------------------------------------------------------------- the networks


def _convolution(
    before: int, after: int, size: int = 3, activation: type[nn.Module] = nn.ReLU, **how: Any
) -> nn.Module:
    convolution = nn.Conv2d(before, after, size, padding=size // 2, bias=False, **how)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), activation())


class _Classifier(nn.Module):
    """A stem, a body, the mean over height and width, and a head, each as a family has it."""

    def __init__(self, *body: nn.Module, width: int = 16, stem: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = _convolution(3, 16, activation=stem, stride=2)
        self.body = nn.Sequential(*body)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.body(self.stem(x))), 1))


class _Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Squeezed(nn.Module):
    """Squeeze and excite, as in EfficientNet (SiLU, sigmoid) and MobileNetV3 (ReLU, hard sigmoid)."""

    def __init__(self, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.pool, self.activation, self.gate = nn.AdaptiveAvgPool2d(1), activation(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.activation(self.down(self.pool(x)))))


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3, padding=1, bias=False))
            for width in (16, 24)
        )
        self.narrower = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.narrower(torch.cat(features, 1))


class _Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _convolution(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.layer(right)), 1)
        rows, _, height, width = x.shape
        return x.view(rows, 2, 8, height, width).transpose(1, 2).reshape(rows, 16, height, width)


class _VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Sequential(nn.Linear(16 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class _ViT(nn.Module):
    """Patches, a class token, learned positions, and blocks around torch's own attention, as torchvision has it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.blocks = nn.ModuleList(nn.ModuleDict(self._block()) for _ in range(2))
        self.head = nn.Linear(32, 10)

    @staticmethod
    def _block() -> dict[str, nn.Module]:
        attention = nn.MultiheadAttention(32, 4, batch_first=True)
        nn.init.normal_(attention.in_proj_bias)
        layers = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        return {"norm": nn.LayerNorm(32), "attention": attention, "layers": layers}

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        for block in self.blocks:
            y = block["norm"](x)
            x = x + block["attention"](y, y, y, need_weights=False)[0]
            x = x + block["layers"](x)
        return self.head(x[:, 0])


class _BERT(nn.Module):
    """Words and positions, a padding mask joined with one for the rows, scaled dot products, GELU behind."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(40, 32), nn.Embedding(16, 32)
        self.layers = nn.ModuleList(nn.ModuleDict(self._layer()) for _ in range(2))
        self.pooler, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

    @staticmethod
    def _layer() -> dict[str, nn.Module]:
        names = ("query", "key", "value", "out")
        linear: dict[str, nn.Module] = {name: nn.Linear(32, 32) for name in names}
        return linear | {
            "up": nn.Linear(32, 64),
            "down": nn.Linear(64, 32),
            "a": nn.LayerNorm(32),
            "b": nn.LayerNorm(32),
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        rows, length, _ = x.shape
        everything = torch.ones(1, 1, length, 1, dtype=torch.bool)
        mask = everything & attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            parts = [layer[name](x).view(rows, length, 4, 8).transpose(1, 2) for name in ("query", "key", "value")]
            mixed = F.scaled_dot_product_attention(*parts, attn_mask=mask)
            x = layer["a"](x + layer["out"](mixed.transpose(1, 2).reshape(rows, length, 32)))
            x = layer["b"](x + layer["down"](F.gelu(layer["up"](x))))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def _separable(activation: type[nn.Module]) -> list[nn.Module]:
    return [
        _convolution(16, 32, 1, activation),
        _convolution(32, 32, 3, activation, groups=32),
        nn.Conv2d(32, 16, 1, bias=False),
        nn.BatchNorm2d(16),
    ]


def _squeezed(activation: type[nn.Module], squeeze: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    wide, deep, *narrow = _separable(activation)
    return _Classifier(_Residual(wide, deep, _Squeezed(squeeze, gate), *narrow), stem=activation)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: _Classifier(_Residual(_convolution(16, 16), nn.Conv2d(16, 16, 3, padding=1)), nn.ReLU()),
    "wide_resnet": lambda: _Classifier(_Residual(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))),
    "mobilenet_v1": lambda: _Classifier(*_separable(nn.ReLU)),
    "mobilenet_v2": lambda: _Classifier(_Residual(*_separable(nn.ReLU6)), stem=nn.ReLU6),
    "mobilenet_v3": lambda: _squeezed(nn.Hardswish, nn.ReLU, nn.Hardsigmoid),
    "efficientnet": lambda: _squeezed(nn.SiLU, nn.SiLU, nn.Sigmoid),
    "shufflenet": lambda: _Classifier(_Shuffled()),
    "densenet": lambda: _Classifier(_Dense()),
    "vgg": _VGG,
    "vit": _ViT,
    "bert": _BERT,
}


def inputs_of(family: str, rows: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if family == "vgg":
        return {"input": torch.randn(rows, 3, 14, 14)}
    if family != "bert":
        return {"input": torch.randn(rows, 3, 32, 32)}
    mask = torch.ones(rows, 16, dtype=torch.int64)
    mask[1, 9:] = 0
    return {"input_ids": torch.randint(0, 40, (rows, 16)), "attention_mask": mask}


def integers(
    pair: Pair,
    folder: Path,
    batch_size: int,
    scheme: str = "convinteger",
    weight_bits: int = 7,
    passes: tuple[str, ...] = CPU.passes,
) -> lowering.TransformedGraph:
    """The sparse half in integers, by default as DeepSparse gets it, calibrated on the pair's own inputs."""
    prepared, instrumented = folder / "prepared.onnx", folder / "instrumented.onnx"
    quantize.fold(pair.onnx("sparse"), prepared)
    watched = quantize.instrument(prepared, instrumented, (), [scheme])
    session = onnxruntime.InferenceSession(instrumented.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = quantize.calibrate(
        lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), [pair.reference.inputs], watched
    )
    return lowering.transform(
        pair.onnx("sparse"),
        folder / "integers.onnx",
        passes=passes,
        batch_size=batch_size,
        ir_version=CPU.ir_version,
        opset=CPU.opset,
        quantization=lowering.Quantization(lowering.Calibrated(prepared, found), scheme, weight_bits=weight_bits),
    )
