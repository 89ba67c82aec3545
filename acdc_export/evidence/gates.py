"""Gates: `METRIC OPERATOR LIMIT` as text, judged against a measurement and its interval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import gt, lt
from typing import Literal

from ..errors import nearest
from ..printable import printable
from .measurement import Measurement as Measurement  # every user of gates needs it
from .metrics import METRICS

Status = Literal["pass", "fail", "inconclusive", "not measured"]
Operator = Literal["<=", ">="]

STATUSES: dict[int, Status] = {0: "pass", 1: "fail", 3: "not measured", 4: "inconclusive"}
"""By exit code."""

_CODES = {status: code for code, status in STATUSES.items()}

_GATE = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w.]*)?\s*(?P<operator><=|>=)?"
    r"\s*(?P<limit>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)?\s*(?P<unit>[A-Za-z%]+)?\s*"
)
_WRONG: dict[Operator, Callable[[float, float], bool]] = {"<=": gt, ">=": lt}  # the value, the limit
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_UNITS: dict[str, dict[str, float]] = {"bytes": {**_BYTES}, "percent": {"%": 1.0}, "": {"%": 0.01, "x": 1.0}}


class GateError(ValueError):
    """A gate that can't be parsed, or asks for what is not measured. The text of the error points at the place."""

    def __init__(self, text: str, start: int, length: int, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}\n  {text}\n  {' ' * start}{'^' * max(1, length)}")


@dataclass(frozen=True)
class Gate:
    """A parsed gate; `text` is how it was written, `limit` is in the metric's own unit (bytes, points, ...)."""

    text: str
    metric: str
    operator: Operator
    limit: float


@dataclass(frozen=True)
class Verdict:
    """The result of a gate. `detail` is a phrase for people."""

    gate: str
    status: Status
    detail: str


def parse(text: str, unmeasured: Mapping[str, str] | None = None) -> Gate:
    """Parse one gate: `speedup >= 1.3`, `size <= 12MB`, `latency.p50.ratio <= 1.03`.

    Args:
        unmeasured: metrics that this run does not measure, and why; see `metrics.unmeasured`.

    Raises:
        GateError: what is wrong, with a caret under it.
    """
    text = " ".join(text.split())
    match = _GATE.match(text)
    assert match is not None  # everything in it is optional
    metric = match["metric"]
    if metric is None:
        raise GateError(text, 0, 1, f"a gate begins with a metric: {', '.join(sorted(METRICS))}")
    if metric not in METRICS:
        raise GateError(text, 0, len(metric), f"unknown metric '{metric}'{nearest(metric, list(METRICS))}")
    for part, wanted in (("operator", "'<=' or '>='"), ("limit", "a number")):
        if match[part] is None:
            before = match.end("metric" if part == "operator" else "operator")
            start = before + len(text[before:]) - len(text[before:].lstrip())
            raise GateError(text, start, len(text) - start, f"{wanted} is missing after '{text[:before]}'")
    if match.end() < len(text):
        raise GateError(text, match.end(), len(text) - match.end(), "a gate ends with its limit and unit")
    limit, units = float(match["limit"]), _UNITS[METRICS[metric].unit]
    if math.isinf(limit):
        raise GateError(text, match.start("limit"), len(match["limit"]), f"{match['limit']} is no limit")
    if match["unit"]:
        if match["unit"] not in units:
            raise GateError(
                text,
                match.start("unit"),
                len(match["unit"]),
                f"'{match['unit']}' is no unit of {metric}, which takes {', '.join(units)} or none",
            )
        limit = float(f"{limit * units[match['unit']]:.15g}")  # 95 * 0.01 is more than 0.95
    if unmeasured and metric in unmeasured:
        raise GateError(text, 0, len(metric), f"{metric} is not measured: {unmeasured[metric]}")
    return Gate(text, metric, "<=" if match["operator"] == "<=" else ">=", limit)


def problems(texts: Iterable[str], unmeasured: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with these gates: an entry of three lines for each gate that can't be parsed."""
    messages = []
    for text in texts:
        try:
            parse(text, unmeasured)
        except GateError as error:
            messages.append(str(error))
    return messages


def judge(gate: Gate, measured: Mapping[str, Measurement | None], *, final: bool = True) -> Verdict:
    """Hold a measurement against a gate.

    A gate passes when the whole interval is on the right side of the limit, and fails when the whole interval is on
    the wrong side. Otherwise it is inconclusive, with one exception. Some gates tolerate a change for the worse
    (`latency.p50.ratio <= 1.03`: unchanged is 1). Such a gate fails when the change is beyond doubt, the data are all
    in (`final`), and they don't show that it is within the tolerance. Without that rule, a slowdown of just the
    tolerated size would stay inconclusive however long one measures.

    A metric that is missing, None or NaN is not measured: never green.
    """
    measurement = measured.get(gate.metric)
    if measurement is None or any(math.isnan(end) for end in (measurement.value, measurement.low, measurement.high)):
        return Verdict(gate.text, "not measured", "no measurement")
    low, high = measurement.low, measurement.high
    sign = 1 if gate.operator == "<=" else -1  # from here on, more is worse
    best, worst = (low, high) if sign > 0 else (high, low)
    unchanged = METRICS[gate.metric].unchanged
    shown = _shown(measurement.value, gate)
    if low != high:
        shown += f" [{_shown(low, gate)}, {_shown(high, gate)}]"
    if sign * worst <= sign * gate.limit:
        return Verdict(gate.text, "pass", shown)
    if sign * best > sign * gate.limit:
        return Verdict(gate.text, "fail", shown)
    if final and unchanged is not None and gate.operator == "<=" and low > unchanged:
        return Verdict(gate.text, "fail", f"{shown}: worse beyond doubt, and more than the limit is possible")
    return Verdict(gate.text, "inconclusive", shown)


def settled(gates: Iterable[Gate], measured: Mapping[str, Measurement | None]) -> bool:
    """Whether the data so far decide all gates on metrics in `measured`, so that more data would change nothing.

    A metric that is None so far leaves its gate open: a tail of too few runs may be there later.
    """
    relevant = [gate for gate in gates if gate.metric in measured]
    return all(judge(gate, measured, final=False).status in ("pass", "fail") for gate in relevant)


def _shown(value: float, gate: Gate) -> str:
    """A number with three digits (four around 1), or as many as it takes to see it on its own side of the limit."""
    if METRICS[gate.metric].unit == "bytes":
        return shown_bytes(value, gate.limit, gate.operator)
    fewest = 4 if 1 <= abs(value) < 2 and METRICS[gate.metric].unchanged == 1 else 3
    return _apart(value, gate.limit, fewest, _WRONG[gate.operator])


def _apart(value: float, limit: float, fewest: int, wrong: Callable[[float, float], bool]) -> str:
    texts = (f"{value:.{digits}g}" for digits in range(fewest, 17))
    return next((text for text in texts if wrong(float(text), limit) == wrong(value, limit)), repr(value))


def shown_bytes(count: float, limit: float = math.inf, operator: Operator = "<=") -> str:
    """Bytes in kB, MB or GB, with as many digits as it takes to see them on their own side of the limit."""
    unit, factor = ("GB", 1e9) if count >= 9.995e8 else ("MB", 1e6) if count >= 1e5 else ("kB", 1e3)
    return f"{_apart(count / factor, limit / factor, 3, _WRONG[operator])} {unit}"


def sampled(gates: Iterable[Gate]) -> int:
    """How many intervals judge these gates; they share the error that a run may make."""
    return len({gate.metric for gate in gates if METRICS[gate.metric].sampled})


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0 all passed, 1 a gate failed, 3 a gate was not measured, 4 a gate is inconclusive. `combine` gives the order.

    No verdicts at all give 3: nothing was measured.
    """
    codes = [_CODES[verdict.status] for verdict in verdicts]
    return combine(codes) if codes else 3


class Judged:
    """A record with gates, and their combined result."""

    gates: tuple[Verdict, ...]

    @property
    def exit_code(self) -> int:
        return exit_code(self.gates)

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return self.exit_code == 0

    @property
    def verdict(self) -> Status:
        """The result of all gates together."""
        return STATUSES[self.exit_code]

    def __str__(self) -> str:
        """The verdict, and a line a gate: what an `assert` shows."""
        lines = (f"  {gate.status}: {printable(gate.gate)} ({printable(gate.detail)})" for gate in self.gates)
        return "\n".join([self.verdict.upper(), *lines])


def combine(codes: Iterable[int]) -> int:
    """The one exit code for several: 1 before 3 before 4 before 0."""
    present = set(codes)
    return next((code for code in (1, 3, 4) if code in present), 0)
