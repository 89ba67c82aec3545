"""The same sparse weights as our export lowers them, and as SparseML 1.8.0 exports them: FP32, in DeepSparse.

    python -m benchmarks.sparseml    (makes its environment in build/sparseml first, which takes minutes)

DeepSparse's makers exported with SparseML, until both were ended in 2025. It puts a PyTorch module through torch's
older exporter and through passes of its own. The network is ResNet-50 with random weights, nine of ten of them zero, at
batch 1. Both variants take turns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from acdc_export import machine
from acdc_export.evidence import latency
from acdc_export.evidence.latency import Plan
from acdc_export.pair import Pair
from acdc_export.present.progress import TerminalProgress

from . import deployments, variants

ENVIRONMENT = Path("build") / "sparseml"
PACKAGES = ("sparseml==1.8.0", "sparsezoo==1.8.1", "safetensors")
PLAN = Plan(budget=3600.0, most=10, launch=4.0)

EXPORT = """
import functools, sys
import torch
torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)  # the only exporter at that time
from safetensors.torch import load_file
from sparseml.pytorch.utils import ModuleExporter
from benchmarks.networks import resnet50
weights, folder = sys.argv[1:]
model = resnet50()
model.load_state_dict(load_file(weights))
ModuleExporter(model.eval(), output_dir=folder).export_onnx(torch.randn(1, 3, 224, 224), name="model.onnx")
"""


def main() -> None:
    pair = deployments.pairs("resnet50")["90 %"]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        theirs = export(pair, where / "theirs")
        evaluation = variants.evaluation_of(pair, "cpu", None, where)
        opens: dict[str, latency.Open] = {
            "ours": variants.lower(pair, "sparse", "cpu", None, where),
            "theirs": partial(evaluation.open, theirs, 1),
        }
        for title, open_it in opens.items():
            with closing(open_it()) as engine:
                print(f"{title}: {engine.info()['supported_ops']:.2f} of the operators on the sparse path")
        (name,) = (spec.name for spec in pair.record.inputs)
        inputs = {name: pair.reference.inputs[name][:1]}
        cpus = machine.describe().cpus
        with TerminalProgress().task("in turns", PLAN.most) as advance:
            compared = latency.measure(
                opens, inputs, batch_size=1, plan=PLAN, cpus=cpus, advance=lambda seconds: advance()
            ).latency()
    ratio, p50 = compared.ratios["theirs"], {name: variant.p50 for name, variant in compared.variants.items()}
    counts = f"{compared.launches} launches, {compared.rounds} rounds"
    print(f"ours {p50['ours']:.1f} ms, theirs {p50['theirs']:.1f} ms; {counts}")
    print(f"theirs takes {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times as long as ours")


def export(pair: Pair, folder: Path) -> Path:
    """Export the sparse half by SparseML. Returns the path of the ONNX file."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        # One after the other: SparseML asks for an older torch, and that for a newer setuptools, without pkg_resources.
        for wanted in (PACKAGES, ("torch==2.13.0",), ("setuptools<81",)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    subprocess.run([python, "-c", EXPORT, pair.path / "sparse.safetensors", folder], check=True)
    return folder / "model.onnx"


if __name__ == "__main__":
    main()
