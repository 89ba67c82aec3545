"""Families of networks in DeepSparse: are they on its sparse path, faster than their twins and TorchScript's graph?

    python -m benchmarks.families                   all families that were not measured yet, and the table
    python -m benchmarks.families resnet50 vgg16    measure these anew, and the table

Weights are random. In the sparse half nine of ten in each layer are zero, by magnitude: latency is the same as with
trained ones. Five variants alternate, at batch 1: both halves as `cpu` lowers them, both halves in INT8, and the sparse
half's weights in the graph that torch's older exporter writes, unlowered. The ratios are times of the other variants
over the sparse half's. torchvision's networks need requirements-vision.txt and BERT requirements-frameworks.txt: two
environments, with one command each.

Pairs stay in runs/families; results/families.json gets a family when its measurement ends.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from acdc_export import Blocks, Unstructured, lowering, machine, models
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.pair import Half, Pair
from acdc_export.records.history import PhaseRecord
from acdc_export.training.to_onnx import write_pair

from . import variants

PAIRS = Path("runs") / "families"
RESULTS = Path(__file__).parent / "results" / "families.json"
SPARSITY = 0.9
TORCHSCRIPT_OPSET = 14
PLAN = Plan(budget=3600.0, most=6, launch=3.0)  # loading takes up to a minute
CALIBRATED = 16  # samples
HALVES: dict[str, tuple[Half, str]] = {
    "sparse": ("sparse", "cpu"),
    "dense": ("dense", "cpu"),
    "sparse int8": ("sparse", "cpu-int8"),
    "dense int8": ("dense", "cpu-int8"),
}
VARIANTS = (*HALVES, "torchscript")


def main() -> None:
    names = sys.argv[1:] or [name for name in FAMILIES if name not in _read()]
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        sys.exit(f"unknown family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    RESULTS.parent.mkdir(exist_ok=True)
    for name in names:
        package = FAMILIES[name][0]
        if not importlib.util.find_spec(package):
            print(f"{name}: {package} is not installed here", flush=True)
            continue
        results = measure(pair(name))
        RESULTS.write_text(json.dumps({**_read(), name: results}, indent=2) + "\n")
        _print(name, results)
    print()
    for name, results in _read().items():
        _print(name, results)


# ---------------------------------------------------------------------------------------------------- the networks


def _torchvision(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None)  # type: ignore[no-any-return]


def _vit_s() -> nn.Module:
    """Make the small vision transformer, which torchvision has no name for."""
    from torchvision.models import VisionTransformer

    shape = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 6}
    model = VisionTransformer(**shape, hidden_dim=384, mlp_dim=1536)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision begins with zeros; no pair may have them
    return model  # type: ignore[no-any-return]


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return _Logits(BertForSequenceClassification(BertConfig()))


def _images(side: int) -> dict[str, torch.Tensor]:
    return {"input": torch.randn(3, 3, side, side)}


def _sentences() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 128, dtype=torch.int64)
    mask[:, 100:] = 0
    return {"input_ids": torch.randint(0, 30000, (3, 128)), "attention_mask": mask}


_IMAGENET = partial(_images, 224)
_TORCHVISION = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16", "densenet121")
FAMILIES: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], dict[str, torch.Tensor]]]] = {
    **{name: ("torchvision", partial(_torchvision, name), _IMAGENET) for name in _TORCHVISION},
    "mobilenet_v1": ("torch", partial(models.build, "mobilenet_v1", {}), _IMAGENET),
    "wide_resnet_28_10": ("torch", partial(models.build, "wide_resnet_original", {}), partial(_images, 32)),
    "vit_s_16": ("torchvision", _vit_s, _IMAGENET),
    "bert_base": ("transformers", _bert, _sentences),
}
"""By name: the package that the network needs, a function that makes it and one that makes its inputs."""


PATTERN = Unstructured(SPARSITY, "uniform")


def pair_of(
    model: nn.Module, inputs: dict[str, torch.Tensor], path: Path, pattern: Unstructured | Blocks = PATTERN
) -> Pair:
    """Make a pair: a network pruned by magnitude, by default nine of ten weights of each layer, and itself."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: no two channels alike
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    masks = pattern.masks(dict(pattern.select(model).weights))
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    return write_pair(
        path,
        model,
        {key: value * masks[key] if key in masks else value for key, value in dense.items()},
        dense,
        tuple(inputs.values()),
        pattern=pattern,
        pruned=list(masks),
        left_dense={},
        unit="epoch",
        phases=[PhaseRecord("dense", 0, 1), PhaseRecord("sparse", 1, 2)],
        epochs=[],
        metrics={},
        input_names=list(inputs),
    )


def pair(name: str) -> Pair:
    """Return the family's pair, with TorchScript's graph of its sparse half beside it. Both are made once."""
    path = PAIRS / name
    script = path.with_name(f"{name}-torchscript.onnx")
    if path.exists() and script.exists():
        return Pair.load(path)
    _, make, take = FAMILIES[name]
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(1)
    inputs = take()
    pair = pair_of(model, inputs, path)
    model.load_state_dict(load_file(path / "sparse.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(value[:1] for value in inputs.values()),
            str(script),
            dynamo=False,
            opset_version=TORCHSCRIPT_OPSET,
            input_names=list(inputs),
            output_names=["logits"],
        )
    return pair


# -------------------------------------------------------------------------------------------------- what is measured


class _Recorded:
    """An engine that records what it says of itself, and its outputs for the first of the pair's inputs."""

    def __init__(self, engine: Any, inputs: dict[str, Any], said: dict[str, Any]) -> None:
        self._engine, self._inputs, self._said = engine, inputs, said

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def ready(self) -> None:
        self._engine.ready()
        if not self._said:
            self._said |= self._engine.info()
            self._said["logits"] = self._engine.run(self._inputs)["logits"]


def measure(pair: Pair) -> dict[str, Any]:
    """Measure the supported operators of the pair, how far outputs are from PyTorch's, and how its variants compare."""
    cpus = machine.describe().cpus
    inputs = {name: array[:1] for name, array in pair.reference.inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        int8 = variants.calibrated(pair, where, CALIBRATED)
        opens = {variant: variants.lower(pair, *HALVES[variant], int8, where) for variant in HALVES}
        fp32 = variants.evaluation_of(pair, "cpu", int8, where)
        opens["torchscript"] = partial(fp32.open, pair.path.with_name(f"{pair.path.name}-torchscript.onnx"), 1)
        said: dict[str, dict[str, Any]] = {variant: {} for variant in VARIANTS}
        compared = latency.measure(
            {variant: partial(_recorded, opens[variant], inputs, said[variant]) for variant in VARIANTS},
            inputs,
            batch_size=1,
            plan=PLAN,
            cpus=cpus,
        ).latency()

        def fraction(path: Path) -> float:
            with closing(fp32.open(path, 1)) as engine:
                return float(engine.info()["supported_ops"])

        missing = []
        if said["sparse"]["supported_ops"] < 1.0:
            missing = lowering.unsupported(where / "sparse-cpu-b1.onnx", where, fraction)
    expected = {"sparse": pair.reference.sparse, "dense": pair.reference.dense, "torchscript": pair.reference.sparse}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": machine.describe().processor,
        "cores": len(cpus),
        "torch": torch.__version__,
        "supported_ops": {variant: said[variant]["supported_ops"] for variant in VARIANTS},
        "unsupported": missing,
        "difference": {
            variant: _difference(said[variant]["logits"], logits["logits"][:1]) for variant, logits in expected.items()
        },
        "p50": {variant: compared.variants[variant].p50 for variant in VARIANTS},
        "ratios": {variant: [ratio.value, ratio.low, ratio.high] for variant, ratio in compared.ratios.items()},
        "launches": compared.launches,
        "rounds": compared.rounds,
        "notes": latency.notes(compared),
    }


def _recorded(open_it: latency.Open, inputs: dict[str, Any], said: dict[str, Any]) -> Any:
    return _Recorded(open_it(), inputs, said)


def _difference(got: Any, expected: Any) -> float:
    """Return the largest abs(output - reference) / (1 + abs(reference)), as parity defines it."""
    return float(np.max(np.abs(got - expected) / (1 + np.abs(expected))))


def _print(name: str, results: dict[str, Any]) -> None:
    fp32, int8, script = (results["supported_ops"][variant] for variant in ("sparse", "sparse int8", "torchscript"))
    measured = results["ratios"]
    ratios = [
        "{:.2f} [{:.2f}, {:.2f}]".format(*measured[variant]) if variant in measured else "not measured"
        for variant in VARIANTS[1:]
    ]
    cells = [name, f"{fp32:.2f}", f"{int8:.2f}", f"{script:.2f}", f"{results['p50']['sparse']:.1f}", *ratios]
    print(f"| {' | '.join(cells)} | {' '.join(results['unsupported'])}", flush=True)


def _read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


if __name__ == "__main__":
    main()
