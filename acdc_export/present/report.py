"""What is shown of a report: a pair on a target, against its twin."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence.accuracy import Accuracy
from ..evidence.gates import Measurement
from ..evidence.latency import Latency, throughput
from ..evidence.parity import Parity
from ..records.inspection import Training
from ..records.report import Report
from . import training
from .document import Document, Table, as_detail
from .format import basis, count, gate_table, interval, machine_line, milliseconds, percent, share, size, zeros


def document(report: Report) -> Document:
    """The verdict, what it comes of, how the pair was trained, and what the numbers rest on."""
    runtime = f"{report.target.runtime} {report.target.version}"
    trained = Training(report.pair.name, report.pair.history, report.pair.left_dense)
    origin = f"Made on {report.created} by acdc-export {report.version}."
    return Document(
        headline=f"{report.pair.name} on {report.target.name} ({runtime}, {report.precision}): "
        f"{report.verdict.upper()}{_beside_dense(report)}",
        status=report.verdict,
        summary=tuple(_summary(report)),
        sections=(
            gate_table(report.gates),
            _halves(report),
            *(_latency(facts, judged=at == 0) for at, facts in enumerate(report.latency) if facts.variants),
            *(as_detail(table) for table in _details(report)),
            *(as_detail(section) for section in training.sections(trained)),
            basis(_facts(report), report.notes, origin),
        ),
    )


def _summary(report: Report) -> list[str]:
    """The findings that a reader wants first: against the twin, and against the best dense alternative."""
    lines = []
    speedup, versus = report.latency[0].ratios.get("dense"), report.measured.get("speedup.vs_control")
    if speedup:
        than = [f"{_times(speedup)} than its dense twin in the same engine"]
        if versus and report.control and report.control != "dense":
            control = _variant_name(report.control)
            than.append(f"{_times(versus)} than the fastest dense alternative, the {control}")
            if _is_gated(report, "speedup.vs_control"):
                than.reverse()
        lines.append(f"At batch {report.gated_batch_size} the sparse half is {', and '.join(than)}.")
    if report.accuracy:
        lines.append(
            f"It gets {report.accuracy.sparse.value:.2f} % of {report.accuracy.samples:,} samples right, the twin "
            f"{report.accuracy.dense.value:.2f} %: a drop of {interval(report.accuracy.drop, 2)} points."
        )
    if report.structure.int8_layers and not report.structure.int8_layers[0]:
        lines.append(f"No layer of the sparse half is in {report.precision.upper()}: it runs in FP32.")
    elif report.quantization:
        cost = report.quantization
        lines.append(
            f"{report.precision.upper()} costs it {interval(cost.drop, 2)} points: in FP32 it gets "
            f"{cost.dense.value:.2f} % right."
        )
    return lines


def _beside_dense(report: Report) -> str:
    """The end of the headline where a gate asks how it does beside the best dense alternative."""
    versus = report.measured.get("speedup.vs_control")
    if versus is None or not _is_gated(report, "speedup.vs_control"):
        return ""
    return f", {_times(versus)} than the fastest dense alternative"


def _is_gated(report: Report, metric: str) -> bool:
    return any(verdict.gate.split(" ")[0] == metric for verdict in report.gates)


def _facts(report: Report) -> list[str]:
    target, pair = report.target, report.pair
    lines = [
        f"Pair: {pair.path}, {pair.kind} ({pair.scope}), {100 * pair.sparsity:g} % aimed at.",
        *([f"Parity: against outputs computed by {pair.reference}."] if pair.reference else []),
        machine_line(report.machine, target.instruction_set),
        *([f"Computes in: {target.computes_in}, as {target.runtime} says."] if target.computes_in else []),
        f"License: {target.license}; {'may' if target.deployable else 'may NOT'} be deployed in production.",
    ]
    if not target.deployable and target.notice:
        lines.append(f"Notice: {target.notice}")
    return [*lines, "Intervals: 95 % for all gates and looks together."]


def _details(report: Report) -> list[Table]:
    """Zeros after every pass, and both halves by class."""
    steps = tuple(
        (step.name, f"{step.zeros:,}", f"{step.total:,}", percent(step.zeros, step.total))
        for step in report.structure.steps
    )
    tables = [Table("Zeros in all weighted operators, after each pass", ("", "zeros", "weights", "share"), steps)]
    if report.accuracy:
        classes = tuple(
            (
                _class_name(counts.label, report.pair.classes),
                f"{counts.samples:,}",
                f"{counts.sparse:,}",
                f"{counts.dense:,}",
            )
            for counts in report.accuracy.classes
        )
        tables.append(Table("Right, by class", ("class", "samples", "sparse", "dense twin"), classes))
    if report.profile:
        whole = sum(layer.seconds for layer in report.profile) or 1.0
        layers = tuple(
            (layer.name, layer.operator, f"{1e3 * layer.seconds:.4f}", percent(layer.seconds, whole))
            for layer in report.profile
        )
        columns = ("", "operator", "milliseconds", "share")
        tables.append(Table("Time by operator, as the runtime profiles the sparse half", columns, layers))
    return tables


def _class_name(label: int, names: Sequence[str]) -> str:
    """The number of a class, and its name where it has one."""
    name = names[label] if label < len(names) else ""
    return f"{label} {name}" if name not in ("", str(label)) else str(label)


def _judged(name: str, accuracy: Accuracy) -> str:
    """A figure's name, with that of the output that it was judged by, where that is known."""
    return f"{name} ({accuracy.output})" if accuracy.output else name


def _halves(report: Report) -> Table:
    structure, accuracy = report.structure, report.accuracy
    rows = [("accuracy", "not measured", "not measured")]
    if accuracy:
        rows = [
            (_judged("accuracy", accuracy), f"{accuracy.sparse.value:.2f} %", f"{accuracy.dense.value:.2f} %"),
            ("agreement of both halves", f"{accuracy.agreement:.2f} %", ""),
        ]
    rows.append(("zeros in pruned layers", zeros(structure.zeros, structure.total), ""))
    rows.append(("operators on the fast path", share(structure.supported_ops), share(structure.dense_supported_ops)))
    if structure.int8_layers and structure.dense_int8_layers:
        rows.append(("layers in INT8", _of(structure.int8_layers), _of(structure.dense_int8_layers)))
    if structure.unsupported:
        rows.append(("off the fast path", ", ".join(structure.unsupported), ""))
    rows += [
        (f"tolerance needed, batch {batch} (parity)", _parity(halves["sparse"]), _parity(halves["dense"]))
        for batch, halves in report.parity.items()
    ]
    rows.append(("model file", size(report.size.sparse), size(report.size.dense)))
    rows += [
        (f"seconds to load, batch {batch}", f"{halves['sparse']:.2f}", f"{halves['dense']:.2f}")
        for batch, halves in report.loading.items()
    ]
    return Table("The two halves", ("", "sparse", "dense twin"), tuple(rows))


def _latency(facts: Latency, *, judged: bool) -> Table:
    rows = []
    for name, variant in facts.variants.items():
        ratio = facts.ratios.get(name)
        samples = f"{throughput(variant, facts.batch_size):,.0f}"
        times = interval(ratio, 2) if ratio else ""
        rows.append((_variant_name(name), *milliseconds(variant), samples, size(variant.memory), times))
    what = f"Batch {facts.batch_size}, {count(facts.threads, 'thread')}{', which the gates judge' if judged else ''}"
    title = f"{what}: milliseconds a batch, {facts.launches} launches, {facts.rounds} rounds"
    columns = ("", "p50", "p90", "p99", "samples/s", "peak memory", "times the sparse")
    return Table(title, columns, tuple(rows), optional=("samples/s", "peak memory", "p99", "p90"))


def _variant_name(name: str) -> str:
    half, _, where = name.partition("@")
    half = "dense twin" if half == "dense" else half
    return f"{half} in {where}" if where else half


def _times(ratio: Measurement) -> str:
    if ratio.value >= 1:
        return f"{ratio.value:.2f}x faster [{ratio.low:.2f}, {ratio.high:.2f}]"
    slower = ratio.inverse()
    return f"{slower.value:.2f}x slower [{slower.low:.2f}, {slower.high:.2f}]"


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def _parity(parity: Parity) -> str:
    return f"{parity.required:.1e} of {parity.tolerance:.0e}"
