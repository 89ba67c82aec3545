"""A picture of a comparison: median latency against accuracy, with the Pareto front, as SVG that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from ..records.comparison import Candidate, Comparison
from .comparison import label

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 48
_ROOM = 190  # to the right of the points, for their names
_LINE = 14  # of text
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.frame{fill:none;stroke:#999}.grid{stroke:#e5e5e5}"
    ".sparse{fill:#1f5fa8;stroke:#1f5fa8}.dense{fill:#fff;stroke:#c8641b;stroke-width:2}"
    ".name{paint-order:stroke;stroke:#fff;stroke-width:3px}.spread,.lead{stroke:#bbb}"
    ".front{fill:none;stroke:#1f5fa8;stroke-dasharray:5 3}"
)


@dataclass(frozen=True)
class _Axis:
    """From values to places; `log` where equal ratios are to be equally far apart."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def svg(found: Comparison) -> str:
    """The comparison as an SVG document: sparse halves filled, dense twins hollow, intervals of accuracy as lines.

    Candidates whose accuracy was not measured are named below, not drawn.
    """
    variants = found.latency[0].variants
    drawn = [
        (one, variants[one.name].p50) for one in found.candidates if one.accuracy is not None and one.name in variants
    ]
    title = f"{found.pair}, batch {found.latency[0].batch_size}: milliseconds a batch, and accuracy"
    parts = [f'<text x="{_LEFT}" y="20">{escape(title)}: sparse filled, dense hollow, the Pareto front dashed</text>']
    if drawn:
        parts += _drawn(found, drawn)
    else:
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT / 2}">Accuracy was not measured: there is nothing to draw.</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _drawn(found: Comparison, drawn: list[tuple[Candidate, float]]) -> list[str]:
    times = [p50 for _, p50 in drawn]
    ends = [end for one, _ in drawn if one.accuracy for end in (one.accuracy.low, one.accuracy.high)]
    x = _Axis(min(times) / 1.05, max(times) * 1.05, _LEFT + 12, _WIDTH - _RIGHT - _ROOM, log=True)
    y = _Axis(math.floor(min(ends)), min(100.0, math.ceil(max(ends))) + 0.01, _HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y)
    front = [one for one, _ in drawn if one.name in found.front]
    places = {one.name: (x(p50), y(one.accuracy.value)) for one, p50 in drawn if one.accuracy}
    corners = sorted((places[one.name] for one in front), key=lambda place: place[0])
    if len(corners) > 1:
        steps = " ".join(f"{across:.1f},{up:.1f}" for across, up in _staircase(corners))
        parts.append(f'<polyline class="front" points="{steps}"/>')
    points = []
    for one, _ in drawn:
        across, up = places[one.name]
        assert one.accuracy is not None
        parts.append(
            f'<line class="spread" x1="{across:.1f}" x2="{across:.1f}" y1="{y(one.accuracy.low):.1f}" '
            f'y2="{y(one.accuracy.high):.1f}"/>'
        )
        points.append(f'<circle class="{one.half}" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')
    return parts + _labels([(label(one), *places[one.name]) for one, _ in drawn]) + points


def _staircase(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The front as steps: until the next candidate's latency is spent, nothing more accurate is to be had."""
    found = corners[:1]
    for across, up in corners[1:]:
        found += [(across, found[-1][1]), (across, up)]
    return found


def _frame(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in _ticks(y.low, y.high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g} %</text>')
    bottom = _HEIGHT - _BOTTOM
    for value in _octaves(x.low, x.high):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
    parts.append(
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{bottom - _TOP}"/>'
    )
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">milliseconds a batch</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers."""
    step = next(size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if (high - low) / size <= 8)
    first = math.ceil(low / step - 1e-9)
    return [round(step * at, 6) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _octaves(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in exponents for digit in (1, 2, 5) if low <= (value := digit * 10.0**power) <= high]


def _labels(named: list[tuple[str, float, float]]) -> list[str]:
    """Names to the right of their points, moved down where they would lie over one another."""
    parts, taken = [], list[tuple[float, float]]()
    for text, across, up in sorted(named, key=lambda one: one[2]):
        at, left, width = up - 5, across + 8, 6.2 * len(text)
        while any(abs(at - other) < _LINE and abs(left - beside) < width for beside, other in taken):
            at += 2
        taken.append((left, at))
        if at - up > _LINE / 2:
            parts.append(f'<line class="lead" x1="{across:.1f}" y1="{up:.1f}" x2="{left:.1f}" y2="{at - 4:.1f}"/>')
        parts.append(f'<text class="name" x="{left:.1f}" y="{at:.1f}">{escape(text)}</text>')
    return parts
