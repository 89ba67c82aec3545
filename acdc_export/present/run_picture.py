"""A picture of a run: its phases, and the accuracy of the half that was trained, as SVG that needs nothing else."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from ..records.history import EpochRecord, History
from .training import accuracy

_WIDTH, _HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 40
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.sparse{fill:#dbe9f6}.dense{fill:#fff}.frame{fill:none;stroke:#999}"
    ".grid{stroke:#e5e5e5}.half{fill:none;stroke-width:2}.a{stroke:#1f5fa8}.b{stroke:#c8641b;stroke-dasharray:5 3}"
)


def svg(history: History, title: str) -> str:
    """The run as an SVG document: sparse phases shaded, accuracy by epoch, the twin's own way dashed.

    Accuracy is the recorded metric whose name ends so, 0 to 1; without one there are only the phases.
    """
    end = history.phases[-1].end
    recorded = [(epoch, value) for epoch in history.epochs if (value := accuracy(epoch)) is not None]
    low, high = _range([value for _, value in recorded])

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / end

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<rect class="{phase.kind}" x="{x(phase.start):.1f}" y="{_TOP}" width="{x(phase.end) - x(phase.start):.1f}" '
        f'height="{bottom - _TOP}"/>'
        for phase in history.phases
    ]
    for share in (low, (low + high) / 2, high) if recorded else ():
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for half, name in (("sparse", "a"), ("dense", "b")):
        places = [f"{x(epoch.index + 1):.1f},{y(max(low, value)):.1f}" for epoch, value in _line(recorded, half)]
        if places:
            parts.append(f'<polyline class="half {name}" points="{" ".join(places)}"/>')
    parts.append(
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{bottom - _TOP}"/>'
    )
    parts += [
        f'<text x="{x(edge):.1f}" y="{bottom + 16}" text-anchor="middle">{edge}</text>' for edge in _edges(history)
    ]
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{history.unit}</text>')
    parts.append(f'<text x="{_LEFT}" y="20">{escape(title)}: sparse phases shaded, the dense twin dashed</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _line(recorded: list[tuple[EpochRecord, float]], half: str) -> list[tuple[EpochRecord, float]]:
    """The epochs of a half; the twin's begin where it leaves, at the last epoch before."""
    own = [point for point in recorded if point[0].half == half]
    if half == "dense" and own:
        own = [point for point in recorded if point[0].half == "sparse" and point[0].index < own[0][0].index][-1:] + own
    return own


def _range(values: list[float]) -> tuple[float, float]:
    """The axis, in tenths: what was reached, but for the lowest tenth of the epochs, which lie on the bottom."""
    if not values:
        return 0.0, 1.0
    low = math.floor(10 * sorted(values)[len(values) // 10]) / 10
    return min(low, 0.9), max(math.ceil(10 * max(values)) / 10, low + 0.1)


def _edges(history: History) -> list[int]:
    """Where phases begin and end, as many as there is room for."""
    edges = [0, *(phase.end for phase in history.phases)]
    room = history.phases[-1].end / 18
    kept: list[int] = []
    for edge in edges:
        if not kept or edge - kept[-1] >= room:
            kept.append(edge)
    return kept
