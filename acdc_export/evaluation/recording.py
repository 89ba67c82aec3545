"""Results in the forms that are written: the facts that gates are judged by, report, manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from .. import files
from ..bundle import Manifest, ModelFile
from ..evidence import metrics
from ..evidence.gates import Verdict, judge
from ..evidence.metrics import Facts
from ..pair import HALVES
from ..records.report import PairFacts, Report, SizeFacts, TargetFacts
from ..version import __version__
from . import timing
from .static import StaticResults
from .timing import Timed


def facts(results: StaticResults, timed: Timed) -> Facts:
    """All that metrics are computed from, at the gated batch size."""
    return replace(
        timing.facts(results.evaluation, timed.latency[0]),
        accuracy=results.accuracy,
        quantization=results.quantization,
        parities=tuple(parity for halves in results.parity.values() for parity in halves.values()),
        zeros=results.structure.zeros,
        total=results.structure.total,
        size=results.models["sparse", results.evaluation.gated].size,
        supported_ops=results.structure.supported_ops,
    )


def report(results: StaticResults, timed: Timed, *, deployable: bool, notes: Iterable[str], seconds: float) -> Report:
    """Judge the results (with `deployable`, by the license too), and put it on record."""
    evaluation, target = results.evaluation, results.evaluation.target
    pair, record = evaluation.pair, evaluation.pair.record
    measured = metrics.values(facts(results, timed))
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
            history=record.counted_history,
            left_dense=record.pattern.left_dense,
            classes=record.classes,
            reference=record.reference.computed_by,
        ),
        target=TargetFacts(
            name=target.name,
            description=target.description,
            runtime=results.info["sparse"]["runtime"],
            version=results.info["sparse"]["version"],
            instruction_set=results.info["sparse"].get("instruction_set"),
            license=target.license.name,
            deployable=target.license.deployable,
            notice=target.license.notice,
            sha256=files.folder_sha256(target.folder),
            locked=evaluation.deployment.installed.environment.locked,
            computes_in=results.info["sparse"].get("precision") or None,
        ),
        machine=evaluation.machine,
        precision=evaluation.deployment.precision,
        gated_batch_size=evaluation.gated,
        structure=results.structure,
        size=SizeFacts(*(results.models[half, evaluation.gated].size for half in HALVES)),
        loading=results.loading,
        parity=results.parity,
        accuracy=results.accuracy,
        quantization=results.quantization,
        profile=results.profile,
        latency=timed.latency,
        control=timing.fastest_dense(timed.latency[0]),
        measured=measured,
        gates=tuple(verdicts),
        notes=(*notes, *timed.notes, *results.notes),
    )


def manifest(results: StaticResults) -> Manifest:
    """What the bundle holds, and what `verify` needs to know."""
    evaluation, target, record = results.evaluation, results.evaluation.target, results.evaluation.pair.record
    names = {results.models["sparse", size].path.name: size for size in evaluation.batch_sizes}
    return Manifest(
        name=evaluation.pair.name,
        target=target.name,
        target_sha256=files.folder_sha256(target.folder),
        runtime=target.runtime.name,
        precision=evaluation.deployment.precision,
        models=tuple(ModelFile(name, size if target.graph.batch == "each" else None) for name, size in names.items()),
        inputs=record.inputs,
        outputs=record.outputs,
        judged_output=evaluation.judged,
        batch_sizes=evaluation.batch_sizes,
        gated_batch_size=evaluation.gated,
        tolerance=evaluation.deployment.settings.tolerance,
        supported_ops=results.structure.supported_ops,
    )
