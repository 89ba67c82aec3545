"""A report made up by hand, with every kind of thing that a report can hold."""

from __future__ import annotations

from dataclasses import replace

from acdc_export.evidence.accuracy import Accuracy, ClassCount
from acdc_export.evidence.contention import Contention
from acdc_export.evidence.gates import Measurement, Status, Verdict
from acdc_export.evidence.latency import Latency, Variant
from acdc_export.evidence.parity import Parity
from acdc_export.evidence.steadiness import Steadiness
from acdc_export.machine import Machine
from acdc_export.records.history import Cost, EpochRecord, History, PhaseRecord
from acdc_export.records.report import LayerRow, PairFacts, Report, SizeFacts, StepRow, Structure, TargetFacts

HISTORY = History(
    (
        PhaseRecord("dense", 0, 3, {"w": 1000}),
        PhaseRecord("sparse", 3, 5, {"w": 100}),
        PhaseRecord("dense", 5, 7, {"w": 990}),
        PhaseRecord("sparse", 7, 10, {"w": 100}, changed=0.06, regrown=1 / 30),
    ),
    "epoch",
    (
        *(EpochRecord(at, "sparse", "dense", {"loss": 1 / (at + 1), "accuracy": 0.7 + 0.1 * at}) for at in range(3)),
        EpochRecord(4, "sparse", "sparse", {"loss": 0.5, "accuracy": 0.875}),
        EpochRecord(9, "sparse", "sparse", {"loss": 0.25, "accuracy": 0.96}),
        EpochRecord(7, "dense", "dense", {"accuracy": 0.95}),
        EpochRecord(9, "dense", "dense", {"accuracy": 0.98}),
    ),
    Cost(dense=2e6, sparse=2.5e5, training_dense=5e7, training_sparse=3e7, training_multiplied=6e7),
    totals={"w": 1000},
    twin_nonzeros={"w": 995},
)


def example(*statuses: Status, **changes: object) -> Report:
    """The report; `statuses` are those of its gates, `changes` other fields."""
    parity = Parity(64, 4.2e-7, 1e-3, 1.5e-6, 1.0)
    made = Report(
        created="2026-01-01T00:00:00+00:00",
        version="0.1.0",
        seconds=61.5,
        pair=PairFacts(
            "tiny",
            "runs/tiny",
            "unstructured",
            "uniform",
            0.9,
            {"sparse": {"accuracy": 0.98}},
            HISTORY,
            {"stem.0": "3 input channels a filter are no multiple of 4"},
        ),
        target=TargetFacts(
            "cpu",
            "DeepSparse",
            "deepsparse",
            "1.8.0",
            "avx512_vnni",
            "Community",
            False,
            "For evaluation only.",
            "0" * 64,
            {"deepsparse": "1.8.0"},
        ),
        machine=Machine("A processor", (0, 1), 2**34, "Linux 6"),
        precision="fp32",
        gated_batch_size=16,
        structure=Structure(
            900,
            1000,
            (StepRow("canonical", 900, 1010),),
            (LayerRow("w", "Conv", (10, 10, 3, 3), 900, 1000, True),),
            {"Conv": 1},
            0.75,
            1.0,
            ("ReduceMean",),
        ),
        size=SizeFacts(3_300_000, 3_300_001),
        loading={"16": {"sparse": 0.71, "dense": 0.7}},
        parity={"16": {"sparse": parity, "dense": replace(parity, required=float("inf"))}},
        accuracy=Accuracy(
            samples=898,
            sparse=Measurement(98.44, 97.4, 99.1),
            dense=Measurement(98.66, 97.7, 99.2),
            drop=Measurement(0.22, -0.41, 0.86),
            agreement=99.1,
            only_sparse=3,
            only_dense=5,
            classes=(ClassCount(0, 898, 884, 886),),
        ),
        latency=(
            Latency(
                16,
                2,
                {
                    "sparse": Variant("sparse", 3000, 1.0, 1.1, 1.5, 166_000_000),
                    "dense": Variant("dense", 900, 3.4, 3.5, None, 165_000_000),
                    "dense@onnxruntime": Variant("dense@onnxruntime", 1200, 4.0, 4.1, 4.2, 68_000_000),
                },
                {"dense": Measurement(3.4, 3.3, 3.5), "dense@onnxruntime": Measurement(4.0, 3.9, 4.1)},
                tails={},
                launches=5,
                rounds=40,
                seconds=21.0,
                looks=1,
                alpha=0.025,
                steadiness=Steadiness(1.1, 0.0, 0.02, 60.0, 0, Contention(0.05, True)),
            ),
        ),
        control="dense",
        measured={"speedup": Measurement(3.4, 3.3, 3.5), "accuracy.drop": None},
        gates=tuple(Verdict(f"gate {at}", status, "shown") for at, status in enumerate(statuses or ("pass",))),
        notes=("The control openvino was not measured: it is not installed.",),
    )
    return replace(made, **changes)  # type: ignore[arg-type]
