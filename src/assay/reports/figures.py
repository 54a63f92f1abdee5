"""A curve as inline SVG: text stays text, and colours are CSS variables, so that one drawing serves light, dark and paper."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from assay.record import Curve
from assay.reports import digits

INK, SOFT, RULE, PAPER = "#a000f0", "#a000f1", "#a000f2", "#a000f3"
LINES = ("#a00001", "#a00002", "#a00003", "#a00004", "#a00005", "#a00006")
THEME = {INK: "--ink", SOFT: "--soft", RULE: "--rule", PAPER: "--paper"} | {code: f"--line-{place}" for place, code in enumerate(LINES, 1)}
MARKERS = "os^Dv*"
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.2,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
Point = tuple[float, float, float | None, float | None]


def draw(curve: Curve, name: str = "figure") -> str:
    """Draw a curve with its interval bands.

    Args:
        curve: the lines and their points.
        name: put before every id inside, so that several drawings share a page.

    Returns:
        An `<svg>` element without script, fixed size, fixed colour or outer reference.
    """
    with mpl.rc_context(STYLE), mpl.rc_context({"svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 3.3 + 0.2 * _legend_rows(curve)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        lines = curve.lines.values() if curve.y_scale == "linear" else _lifted(list(curve.lines.values()))
        handles = [_line(axes, points, place) for place, points in enumerate(lines)]
        _scales(axes, curve)
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(curve.y_label + ("; 0 lies at the foot" if _lifts(curve) else ""))
        axes.grid(axis="y")
        if len(handles) > 1:
            figure.legend(handles, list(curve.lines), loc="outside upper left", ncols=_columns(curve), frameon=False, handlelength=2.4)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _themed(buffer.getvalue(), curve.title, name)


def _columns(curve: Curve) -> int:
    return max(1, min(len(curve.lines), 96 // (8 + max(map(len, curve.lines), default=1))))


def _legend_rows(curve: Curve) -> int:
    return math.ceil(len(curve.lines) / _columns(curve)) if len(curve.lines) > 1 else 0


def _foot(lines: Iterable[list[Point]]) -> float:
    """Return the smallest height above zero, where a logarithmic scale begins."""
    return min((point[1] for line in lines for point in line if point[1] > 0), default=0.1)


def _lifts(curve: Curve) -> bool:
    """Return whether a height or an interval end of zero stands at the foot of a logarithmic scale."""
    ends = (end for line in curve.lines.values() for point in line for end in point[1:])
    return curve.y_scale == "log" and any(end is not None and end <= 0 for end in ends)


def _lifted(lines: list[list[Point]]) -> list[list[Point]]:
    """Return lines whose heights and interval ends are at least the foot of a logarithmic scale."""
    foot = _foot(lines)

    def lifted(end: float | None) -> float | None:
        return None if end is None else max(end, foot)

    return [[(x, max(y, foot), lifted(low), lifted(high)) for x, y, low, high in line] for line in lines]


def _line(axes: Axes, points: list[Point], place: int) -> Line2D:
    colour = LINES[place % len(LINES)]
    x, y = [p[0] for p in points], [p[1] for p in points]
    low = [math.nan if p[2] is None else p[2] for p in points]
    high = [math.nan if p[3] is None else p[3] for p in points]
    axes.vlines(x, low, high, color=colour, linewidth=1.0, alpha=0.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    marker = MARKERS[place % len(MARKERS)] if len(points) <= 30 else ""
    dash = DASHES[place // len(LINES) % len(DASHES)]
    return axes.plot(
        x, y, color=colour, linestyle=dash, linewidth=1.5, marker=marker, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.8, clip_on=False
    )[0]


def _scales(axes: Axes, curve: Curve) -> None:
    points = [point for line in curve.lines.values() for point in line]
    places = sorted({p[0] for p in points})
    if curve.x_scale == "symlog":
        axes.set_xscale("symlog", linthresh=min((abs(x) for x in places if x), default=1.0), linscale=0.6)
    else:
        axes.set_xscale(curve.x_scale)
    if 0 < len(places) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FixedFormatter([digits.number(x) for x in places]))
        axes.xaxis.set_minor_locator(NullLocator())
    elif curve.x_scale != "linear":
        _plain_numbers(axes.xaxis, curve.x_scale)
    heights = [v for p in points for v in p[1:] if v is not None]
    if curve.y_scale == "log":
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, curve.y_scale)
        axes.set_ylim(_foot(curve.lines.values()), max([1.0, *heights]))
    elif heights and min(heights) >= 0 and 0.3 <= max(heights) <= 1:
        axes.set_ylim(0, 1)
    elif heights and min(heights) >= 0:
        axes.set_ylim(bottom=0)


def _plain_numbers(axis: Axis, scale: str) -> None:
    """Write numbers as they are read: the formatters that come with these scales write TeX, which is not parsed here."""
    if scale == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: digits.number(x)))
    axis.set_minor_formatter(NullFormatter())


def _themed(svg: str, title: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    for code, variable in THEME.items():
        svg = svg.replace(code, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    kept = box.group(0) if box else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg" {kept} role="img" aria-label="{escape(title)}">{rest}'.strip()
