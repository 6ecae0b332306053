"""Plots as SVG that takes its ink from the page, so that one picture suits light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_INK = "#010203"  # stands for the page's own colour of text
COLOURS = ("#3b82c4", "#d9772b", "#2f9e6e", "#9a6fc4", "#cf5c5c", "#8a8f98")
"""At least 3 to 1 against white and against the dark page."""
_MARKERS = "osD^vX"
_WIDTH = 4.6  # inches; at 10 points this is readable on a phone of 360 pixels
_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "tierstore",  # the same ids each time
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot.

    Attributes:
        title: what it shows.
        svg: the element, without a prolog; `currentColor` is its ink.
        alt: what somebody who does not see it should know.
    """

    title: str
    svg: str
    alt: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval."""

    name: str
    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """Points, and a line if the model has one.

    Attributes:
        name: for the legend.
        x: where they are.
        y: their heights.
        low: lower ends of their intervals; empty for none.
        high: the upper ones.
        line: heights of the model's line at `x`; empty for none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    line: Sequence[float] = ()

    @property
    def at(self) -> tuple[Sequence[float], Sequence[float]]:
        """The points."""
        return self.x, self.y


@contextmanager
def _axes(height: float) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes to draw on, and a list that is given the SVG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn: list[str] = []
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure.subplots(), drawn
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    found = out.getvalue()
    found = found[found.index("<svg") :].replace(_INK, "currentColor")
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    drawn.append(re.sub(r' (width|height)="[\d.]+pt"', "", found, count=2))


def bars(title: str, unit: str, found: Sequence[Bar], ours: str = "tierstore") -> Picture:
    """Return horizontal bars, the first on top; `ours` begins the names that are coloured."""
    with _axes(0.9 + 0.3 * len(found)) as (axes, drawn):
        places = range(len(found))
        colours = [COLOURS[0] if bar.name.startswith(ours) else COLOURS[5] for bar in found]
        spans = [[b.value - b.low for b in found], [b.high - b.value for b in found]]
        axes.barh(places, [b.value for b in found], color=colours, xerr=spans, ecolor=_INK)
        axes.set_yticks(places, [b.name for b in found])
        for place, bar in zip(places, found, strict=True):
            axes.text(bar.high, place, f" {short(bar.value)}", va="center")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(unit)
    values = "; ".join(f"{b.name} {short(b.value)}" for b in found)
    return Picture(title, drawn[0], f"Bar chart, {title}, in {unit}. {values}.")


def against(title: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    """Return predicted over measured seconds, both logarithmic, with the line of equality."""
    with _axes(3.8) as (axes, drawn):
        every = [value for points in found.values() for value in points]
        low, high = min(x for x, _ in every), max(x for x, _ in every)
        for number, (name, points) in enumerate(found.items()):
            above = {"linestyle": "", "zorder": 9 - number}  # the first is not hidden by others
            axes.loglog(*zip(*points, strict=True), **_look(number), **above, label=name)
        axes.loglog([low, high], [low, high], color=_INK, linewidth=1, label="exact")
        axes.set_xlabel("measured, s")
        axes.set_ylabel("predicted, s")
        axes.grid(alpha=0.2, color=_INK)
        _legend(axes)
    each = "; ".join(
        f"{name}: half of its {len(points)} predictions are within "
        f"{_factor(points):.3g} times of what was measured"
        for name, points in found.items()
    )
    return Picture(title, drawn[0], f"Scatter plot, {title}. {each}.")


def curves(title: str, x: str, y: str, found: Sequence[Series]) -> Picture:
    """Return measured points with their intervals, and the model's lines, over a binary axis."""
    with _axes(3.4) as (axes, drawn):
        for number, series in enumerate(found):
            spans = None
            if series.low:
                spans = [
                    [m - n for m, n in zip(series.y, series.low, strict=True)],
                    [n - m for m, n in zip(series.y, series.high, strict=True)],
                ]
            look = _look(number)
            axes.errorbar(series.x, series.y, spans, **look, linestyle="", label=series.name)
            if series.line:
                axes.plot(series.x, series.line, color=look["color"], linewidth=1.2)
        axes.set_xscale("log", base=2)
        ticks = sorted({value for series in found for value in series.x})
        axes.set_xticks(ticks, [f"{value:.2g}" for value in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.2, color=_INK)
        _legend(axes)
    each = "; ".join(
        f"{s.name}: "
        + ", ".join(f"{short(v)} at {short(at)}" for at, v in zip(s.x, s.y, strict=True))
        for s in found
    )
    return Picture(title, drawn[0], f"Points and model lines, {title}: {y} over {x}. {each}.")


def spans(title: str, rows: Sequence[tuple[str, float, float]]) -> Picture:
    """Return a time line: one bar a row from its begin to its end, in seconds."""
    with _axes(0.9 + 0.3 * len(rows)) as (axes, drawn):
        last = max(end for _, _, end in rows)
        for place, (_, begin, end) in enumerate(rows):
            width = max(end - begin, last / 300)  # so that an instant can be seen
            axes.barh(place, width, left=begin, color=COLOURS[0 if place else 1])
            axes.text(begin + width, place, f" {short(end)}", va="center")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds after the call of save")
    each = "; ".join(f"{name} from {short(begin)} to {short(end)} s" for name, begin, end in rows)
    return Picture(title, drawn[0], f"Time line, {title}. {each}.")


def short(value: float) -> str:
    """Return a number in three digits, without an exponent as far as people read it so."""
    if not value or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def _look(number: int) -> dict[str, Any]:
    at = number % len(COLOURS)
    return {"color": COLOURS[at], "marker": _MARKERS[at], "markersize": 4.5}


def _legend(axes: Any) -> None:
    axes.figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)


def _factor(points: Sequence[tuple[float, float]]) -> float:
    factors = sorted(max(y / x, x / y) for x, y in points)
    return factors[len(factors) // 2]
