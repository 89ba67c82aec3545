"""Charts as SVG, by matplotlib: an extra. The same chart gives the same bytes.

The colours are of Okabe and Ito's palette, which colour-blind readers can tell apart; fill and dashes say the same.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import extra
from ..printable import printable
from .document import Chart, Place, Point, RunChart, ScatterChart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_BLUE, _ORANGE, _SHADE, _GREY = "#0072B2", "#D55E00", "#DCE9F5", "#8C8C8C"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 9,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "acdc-export",
    "text.parse_math": False,  # a dollar in a name is a dollar
}
_LINE = 13.0  # points from one label to the next
_GAP = 5.0  # points from a mark to its label, sideways
_RISE = 8.0  # and upwards, so that no line of the grid or the front strikes it through
_SMALL = 8  # points of a label's letters


def available() -> bool:
    """Whether charts can be drawn here."""
    _give_settings_a_folder()
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _give_settings_a_folder() -> None:
    """Give matplotlib a folder where there is no home; it needs one, and raises otherwise while it is imported."""
    if "MPLCONFIGDIR" in os.environ:
        return
    try:
        Path.home()
    except RuntimeError:
        folder = tempfile.mkdtemp(prefix="acdc-export-matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = folder


def write(path: Path, chart: Chart) -> None:
    """Draw a chart into a file. Raises `RuntimeUnavailable` where the extra is not installed."""
    path.write_text(svg(chart), encoding="utf-8")


def svg(chart: Chart) -> str:
    """A chart as an SVG document. Raises `RuntimeUnavailable` where the extra is not installed."""
    _give_settings_a_folder()
    with extra("charts"):
        import matplotlib.figure  # noqa: F401
    with _styled():
        figure = _DRAW[type(chart)](chart)
        content = StringIO()
        about = {"Title": f"{printable(chart.subject)}: {chart.caption}", "Date": None, "Creator": "acdc-export"}
        figure.savefig(content, format="svg", metadata=about)
    drawn = content.getvalue()
    return drawn[drawn.index("<svg") :]  # without the prologue, it can stand in HTML as well


@contextmanager
def _styled() -> Iterator[None]:
    """Our style, whatever the user's own is; it is as before when the block ends."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A name in a script that the measuring font lacks: the SVG holds the text, and the viewer has the font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(width: float, height: float, chart: Chart) -> tuple[Figure, Axes]:
    """A figure of so many points, with one pair of axes and a title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)  # which can measure text
    axes = figure.add_subplot()
    axes.set_title(f"{printable(chart.subject)}: {chart.caption[:1].lower()}{chart.caption[1:]}")
    return figure, axes


def _run(chart: RunChart) -> Figure:
    """Phases along the bottom, sparse ones shaded; accuracy upwards."""
    from matplotlib.ticker import FixedLocator

    figure, axes = _figure(720, 300, chart)
    label: str | None = "sparse phase"
    for span in chart.phases:
        if span.kind == "sparse":
            axes.axvspan(span.start, span.end, color=_SHADE, linewidth=0, label=label)
            label = None  # once in the legend
    marker = "o" if len(chart.sparse) + len(chart.dense) <= 60 else ""
    for places, name, colour, dashes in (
        (chart.sparse, "sparse half", _BLUE, "-"),
        (chart.dense, "dense twin", _ORANGE, "--"),
    ):
        if places:
            across, up = zip(*places, strict=True)
            axes.plot(across, up, dashes, color=colour, marker=marker, markersize=3, label=name)
    low, high = _range([up for _, up in (*chart.sparse, *chart.dense)])
    axes.set_ylim(low - 0.5, high + 0.5)  # so that a line at the edge is seen whole
    axes.set_xlim(chart.phases[0].start, chart.phases[-1].end)
    axes.xaxis.set_major_locator(FixedLocator(_edges(chart)))
    axes.set_xlabel(chart.unit)
    if chart.sparse or chart.dense:
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="y")
    else:
        axes.set_yticks([])
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The axis of accuracies, in tens: what was reached, but for the lowest tenth of them, which fall out of it."""
    if not values:
        return 0.0, 100.0
    low = min(10 * math.floor(sorted(values)[len(values) // 10] / 10), 90)
    return low, max(10 * math.ceil(max(values) / 10), low + 10)


def _edges(chart: RunChart) -> list[int]:
    """Where phases begin and end, as many as there is room for."""
    edges = [chart.phases[0].start, *(span.end for span in chart.phases)]
    room = (edges[-1] - edges[0]) / 24
    kept: list[int] = []
    for edge in edges:
        if not kept or edge - kept[-1] >= room:
            kept.append(edge)
    return kept


def _scatter(chart: ScatterChart) -> Figure:
    """Latency along a logarithmic axis, accuracy upwards with its intervals, the Pareto front as steps."""
    figure, axes = _figure(760, max(400, 180 + _LINE * len(chart.points)), chart)
    axes.set_xscale("log")
    _limits(axes, chart.points)
    axes.set_xlabel(printable(chart.x))
    axes.set_ylabel(printable(chart.y))
    axes.grid()
    for half, name, colour, fill in (("sparse", "sparse half", _BLUE, _BLUE), ("dense", "dense twin", _ORANGE, "w")):
        points = [point for point in chart.points if point.half == half]
        if points:
            axes.errorbar(
                [point.x for point in points],
                [point.y for point in points],
                [[point.y - point.low for point in points], [point.high - point.y for point in points]],
                fmt="o",
                color=colour,
                markerfacecolor=fill,
                markersize=7,
                elinewidth=1,
                capsize=2,
                label=f"{name}, with its interval",
                zorder=3,
            )
    front = sorted((point.x, point.y) for point in chart.points if point.front)
    if len(front) > 1:
        # Until the next one's latency is spent, nothing more accurate is to be had.
        axes.step(*zip(*front, strict=True), where="post", color="black", ls="--", lw=1, label="Pareto front", zorder=2)
    handles = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: str(handle.get_label()), reverse=True)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    _label(figure, axes, chart.points)
    return figure


def _limits(axes: Axes, points: Sequence[Point]) -> None:
    """Both axes, with room for labels, and round numbers along the bottom."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    across = [point.x for point in points]
    spread = max(max(across) / min(across), 1.1)
    left, right = min(across) / spread**0.15, max(across) * spread**0.35
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(FixedLocator(_round(left, right)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    low, high = min(point.low for point in points), max(point.high for point in points)
    room = max(high - low, 0.1) * 0.08
    axes.set_ylim(low - room, high + room)


def _round(low: float, high: float) -> list[float]:
    """Round numbers between two, at least three of them, in about equal ratios where that is possible."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * power for power in powers for digit in digits if low <= digit * power <= high]
        if len(ticks) >= 4:
            return ticks
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (factor * step) >= 3)
    return [step * at for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Each point's name beside it, or as near as there is room, with a line that leads to it."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # lays out the axes, so that places are known in points
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = [Bbox.from_bounds(across - 5, up - 5, 10, 10) for across, up in (_place(axes, point) for point in points)]
    for point in sorted(points, key=lambda point: (-point.y, point.x)):
        label = printable(point.label)
        measured = axes.text(0, 0, label, fontsize=_SMALL)
        width, height = measured.get_window_extent().size
        measured.remove()
        across, up = _place(axes, point)
        aside, rise = _free((across, up), (width, height), taken, frame)
        taken.append(Bbox.from_bounds(across + aside, up + rise - height / 2, width, height))
        leader = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkB": 4, "relpos": (aside < 0, 0.5)}
        axes.annotate(
            label,
            (point.x, point.y),
            xytext=(aside, rise),
            textcoords="offset points",
            va="center",
            fontsize=_SMALL,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0},
            arrowprops=leader if abs(rise) > _RISE else None,
            zorder=4,
        )


def _place(axes: Axes, point: Point) -> Place:
    """Where a point lies in the figure, in points."""
    across, up = axes.transData.transform((point.x, point.y))
    return float(across), float(up)


def _free(place: Place, size: Place, taken: Sequence[Bbox], frame: Bbox) -> Place:
    """The nearest offset, in points, at which a label lies on no other and within the frame; else to the right."""
    from matplotlib.transforms import Bbox

    (across, up), (width, height) = place, size
    for step in range(int(2 * frame.height / _LINE) + 1):
        for rise in (_RISE + step * _LINE / 2, -_RISE - step * _LINE / 2):
            for start in (_GAP, -_GAP - width):
                box = Bbox.from_bounds(across + start, up + rise - height / 2, width, height)
                inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
                if inside and not box.count_overlaps(taken):
                    return start, rise
    return _GAP, _RISE


_DRAW: dict[type, Callable[[Any], Figure]] = {RunChart: _run, ScatterChart: _scatter}
"""How each kind of chart is drawn."""
