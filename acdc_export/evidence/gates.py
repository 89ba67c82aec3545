"""Gates: `METRIC OPERATOR LIMIT` as text, judged against a measurement and its interval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import nearest

Status = Literal["pass", "fail", "inconclusive", "not measured"]

METRICS = {
    "accuracy.drop": "points of accuracy that the sparse half loses against its twin",
    "accuracy.sparse": "percent of samples that the sparse half gets right",
    "parity": "tolerance that the outputs of both halves need against eager PyTorch",
    "sparsity": "fraction of zeros in the pruned layers' weights, as deployed",
    "speedup": "the twin's latency over the sparse half's, same engine, at the gated batch size",
    "speedup.vs_control": "the fastest dense alternative's latency over the sparse half's, all controls measured",
    "supported_ops": "fraction of operators on the engine's fast path",
}
"""What a gate may ask for. docs/design.md describes each."""

STATUSES: dict[int, Status] = {0: "pass", 1: "fail", 3: "not measured", 4: "inconclusive"}
"""By exit code."""

_CODES = {status: code for code, status in STATUSES.items()}

_GATE = re.compile(r"\s*(?P<metric>[a-z_.]+)\s*(?P<operator><=|>=)\s*(?P<limit>[-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Measurement:
    """An estimate with its 95 % interval; a thing that was counted, not sampled, has low = value = high."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Measurement:
        return cls(value, value, value)


@dataclass(frozen=True)
class Gate:
    """A parsed gate; `text` is how it was written."""

    text: str
    metric: str
    operator: Literal["<=", ">="]
    limit: float


@dataclass(frozen=True)
class Verdict:
    """What became of a gate. `detail` is a phrase for people."""

    gate: str
    status: Status
    detail: str


def parse(text: str) -> Gate:
    """Parse one gate, such as `speedup >= 1.3`. Raises `ValueError` with what is wrong, in one line."""
    match = _GATE.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not of the form 'METRIC >= NUMBER' or 'METRIC <= NUMBER'")
    metric = match["metric"]
    if metric not in METRICS:
        raise ValueError(f"'{text}' names an unknown metric '{metric}'{nearest(metric, list(METRICS))}")
    try:
        limit = float(match["limit"])
    except ValueError:
        raise ValueError(f"'{text}': '{match['limit']}' is not a number") from None
    return Gate(text.strip(), metric, "<=" if match["operator"] == "<=" else ">=", limit)


def problems(texts: Iterable[str]) -> list[str]:
    """What is wrong with these gates, one line for each that can't be parsed."""
    found = []
    for text in texts:
        try:
            parse(text)
        except ValueError as error:
            found.append(str(error))
    return found


def judge(gate: Gate, measured: Mapping[str, Measurement | None]) -> Verdict:
    """Hold a measurement against a gate.

    The whole interval on the right side passes, the whole interval on the wrong side fails, and an interval
    that holds the limit is inconclusive. A metric that is missing, None or NaN is not measured: never green.
    """
    found = measured.get(gate.metric)
    if found is None or any(math.isnan(number) for number in (found.value, found.low, found.high)):
        return Verdict(gate.text, "not measured", "no measurement")
    if gate.operator == ">=":
        passed, failed = found.low >= gate.limit, found.high < gate.limit
    else:
        passed, failed = found.high <= gate.limit, found.low > gate.limit
    shown = _shown(found.value, gate.limit)
    if found.low != found.high:
        shown += f" [{_shown(found.low, gate.limit)}, {_shown(found.high, gate.limit)}]"
    return Verdict(gate.text, "pass" if passed else "fail" if failed else "inconclusive", shown)


def _shown(value: float, limit: float) -> str:
    """A number in three digits, or in as many as it takes to be seen on its own side of the limit."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if (float(text) < limit) == (value < limit)), repr(value))


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0 all passed, 1 one failed, 3 one could not be measured, 4 one is inconclusive; as `combine` has them.

    Without any verdict nothing was measured: 3.
    """
    codes = [_CODES[verdict.status] for verdict in verdicts]
    return combine(codes) if codes else 3


def combine(codes: Iterable[int]) -> int:
    """The one exit code for several: 1 before 3 before 4 before 0."""
    found = set(codes)
    return next((code for code in (1, 3, 4) if code in found), 0)
