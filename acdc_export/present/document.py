"""What is shown of a record, before anything is said of how: pure data, from which every renderer works.

The text in it may come from anybody's files. Whoever renders it cleans and escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..evidence.gates import Status


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows. All columns but the first are numbers, unless `text` says otherwise."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: bool = False
    optional: tuple[str, ...] = ()  # columns that may be left out where there is little room, the first one first
    statuses: tuple[Status, ...] = ()  # of the rows, where they are verdicts
    detail: bool = False


@dataclass(frozen=True)
class Notes:
    """Lines of text under a title."""

    title: str
    lines: tuple[str, ...]
    detail: bool = False


@dataclass(frozen=True)
class Span:
    """A phase of a training run, `[start, end)` in the unit of its chart."""

    kind: Literal["dense", "sparse"]
    start: int
    end: int


Place = tuple[float, float]


@dataclass(frozen=True)
class RunChart:
    """A training run: its phases, and the accuracy of each half at the end of an epoch (or step), in percent."""

    name: str  # of its file, without the suffix
    title: str
    caption: str  # what it shows, for those who can't see it
    subject: str  # what the chart is of
    unit: str  # "epoch" or "step"
    phases: tuple[Span, ...]
    sparse: tuple[Place, ...]
    dense: tuple[Place, ...]  # from where the twin leaves
    notes: tuple[str, ...] = ()
    detail: bool = False


@dataclass(frozen=True)
class Point:
    """One of several things that are compared: `low` and `high` are the interval of `y`."""

    label: str
    half: Literal["sparse", "dense"]
    x: float
    y: float
    low: float
    high: float
    front: bool  # whether no other point is better in both directions


@dataclass(frozen=True)
class ScatterChart:
    """Latency against accuracy, where less of `x` and more of `y` is better; `x` is positive."""

    name: str  # of its file, without the suffix
    title: str
    caption: str  # what it shows, for those who can't see it
    subject: str  # what the chart is of
    x: str  # the axes' labels
    y: str
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    detail: bool = False


Chart = RunChart | ScatterChart
Section = Table | Notes | Chart


@dataclass(frozen=True)
class Document:
    """A record for readers: the answer, what stands for and against it, and then the sections in reading order.

    A section that is a detail is for those who read on. Where there is little room, it is left out.
    """

    headline: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    status: Status | None = None

    @property
    def charts(self) -> tuple[Chart, ...]:
        """The sections that are to be drawn."""
        return tuple(section for section in self.sections if isinstance(section, Chart))


def as_detail(section: Section) -> Section:
    """The same section, for those who read on."""
    return replace(section, detail=True)
