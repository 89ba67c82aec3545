"""What was found, put into the forms that are written: gate metrics, report, manifest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from .. import files
from ..bundle import Manifest, ModelFile
from ..evidence.gates import Measurement, Verdict, judge
from ..pair import HALVES
from ..records.report import PairFacts, Report, SizeFacts, TargetFacts
from ..version import __version__
from . import timing
from .static import StaticResults
from .timing import Timed


def measurements(found: StaticResults, timed: Timed) -> dict[str, Measurement | None]:
    """The metrics that gates may name (`gates.METRICS`), at the gated batch size; None where not measured."""
    evaluation, structure, accuracy = found.evaluation, found.structure, found.accuracy
    gated = timed.latency[0]
    parities = [half for halves in found.parity.values() for half in halves.values()]
    known = structure.zeros is not None and structure.total
    sparse = gated.variants.get("sparse")
    return {
        **timing.metrics(evaluation, gated),
        "accuracy.drop": accuracy.drop if accuracy else None,
        "accuracy.sparse": accuracy.sparse if accuracy else None,
        "memory.peak": Measurement.exact(sparse.memory) if sparse else None,
        "parity": Measurement.exact(max(half.required for half in parities)),
        "parity.max_abs": Measurement.exact(max(half.max_abs for half in parities)),
        "quantization.drop": found.quantization.drop if found.quantization else None,
        "size": Measurement.exact(found.models["sparse", evaluation.gated].size),
        "sparsity": Measurement.exact((structure.zeros or 0) / (structure.total or 1)) if known else None,
        "supported_ops": None if structure.supported_ops is None else Measurement.exact(structure.supported_ops),
    }


def report(found: StaticResults, timed: Timed, *, deployable: bool, notes: Iterable[str], seconds: float) -> Report:
    """Judge what was found (with `deployable`, by the license too), and put it on record."""
    evaluation, target = found.evaluation, found.evaluation.target
    pair, record = evaluation.pair, evaluation.pair.record
    measured = measurements(found, timed)
    verdicts = [judge(gate, measured) for gate in evaluation.gates]
    if deployable:
        verdicts.append(Verdict("deployable", "pass" if target.license.deployable else "fail", target.license.name))
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        seconds=round(seconds, 1),
        pair=PairFacts(
            name=pair.name,
            path=str(pair.path),
            kind=record.pattern.kind,
            scope=record.pattern.scope,
            sparsity=record.pattern.sparsity,
            metrics=record.metrics,
            history=record.history,
            dense=record.pattern.dense,
        ),
        target=TargetFacts(
            name=target.name,
            description=target.description,
            runtime=found.info["sparse"]["runtime"],
            version=found.info["sparse"]["version"],
            instruction_set=found.info["sparse"].get("instruction_set"),
            license=target.license.name,
            deployable=target.license.deployable,
            notice=target.license.notice,
            sha256=files.folder_sha256(target.folder),
            locked=evaluation.deployment.installed.environment.locked,
        ),
        machine=evaluation.machine,
        precision=evaluation.deployment.precision,
        gated_batch_size=evaluation.gated,
        structure=found.structure,
        size=SizeFacts(*(found.models[half, evaluation.gated].size for half in HALVES)),
        loading=found.loading,
        parity=found.parity,
        accuracy=found.accuracy,
        quantization=found.quantization,
        profile=found.profile,
        latency=timed.latency,
        control=timing.fastest_dense(timed.latency[0]),
        measured=measured,
        gates=tuple(verdicts),
        notes=(*notes, *timed.notes, *found.notes),
    )


def manifest(found: StaticResults) -> Manifest:
    """What the bundle holds, and what `verify` needs to know."""
    evaluation, target, record = found.evaluation, found.evaluation.target, found.evaluation.pair.record
    names = {found.models["sparse", size].path.name: size for size in evaluation.batch_sizes}
    return Manifest(
        name=evaluation.pair.name,
        target=target.name,
        target_sha256=files.folder_sha256(target.folder),
        runtime=target.runtime.name,
        precision=evaluation.deployment.precision,
        models=tuple(ModelFile(name, size if target.graph.batch == "each" else None) for name, size in names.items()),
        inputs=record.inputs,
        outputs=record.outputs,
        batch_sizes=evaluation.batch_sizes,
        gated_batch_size=evaluation.gated,
        tolerance=evaluation.deployment.settings.tolerance,
        supported_ops=found.structure.supported_ops,
    )
