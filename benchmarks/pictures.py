"""Which plots each comparison has, and under which heading of its tables they belong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.plots import Bar, Picture, Series, against, bars, curves, spans
from benchmarks.report import GB
from benchmarks.storage_judge import FORMS
from benchmarks.timeline_report import label
from tierstore.model.curve import Curve

Placed = tuple[str, Picture]
"""The beginning of a heading, and a plot to show below it."""

_MEASURES = (
    ("stall of an asynchronous save", "async", "stall", "s"),
    ("time to durable", "save", "wall", "s"),
    ("cold load", "load cold", "wall", "s"),
    ("client CPU of a save", "save", "cpu", "s/GB"),
)
_CONCURRENCY, _MIB = 4, 1 << 20


def of_checkpoints(document: dict[str, Any]) -> Iterator[Placed]:
    """Peers side by side, for every scenario."""
    for scenario, found in document["scenarios"].items():
        for title, measure, figure, unit in _MEASURES:
            scale = GB / found["bytes"] if unit == "s/GB" else 1
            there = {n: p[measure][figure] for n, p in found["peers"].items() if measure in p}
            if there:
                yield f"{scenario}, ", bars(f"{scenario}: {title}", unit, _bars(there, scale))


def of_workloads(document: dict[str, Any]) -> Iterator[Placed]:
    """Peers side by side, for every workload."""
    for workload, found in document["workloads"].items():
        peers = {name: figures["wall"] for name, figures in found["peers"].items()}
        yield f"{workload}: ", bars(f"{workload}: time", "s", _bars(peers))
        cpu = {name: figures["cpu"] for name, figures in found["peers"].items()}
        scale = GB / found["bytes"]
        yield f"{workload}: ", bars(f"{workload}: client CPU", "s/GB", _bars(cpu, scale))


def of_mlperf(document: dict[str, Any]) -> Iterator[Placed]:
    """Peers side by side, for every shape."""
    for shape, found in document["mlperf"].items():
        for title, measure in (("write", "save"), ("read", "load")):
            peers = {name: figures[measure]["wall"] for name, figures in found["peers"].items()}
            picture = bars(f"MLPerf {shape}: {title}, slowest rank", "s", _bars(peers))
            yield f"MLPerf {shape}: ", picture


def of_timeline(document: dict[str, Any]) -> Iterator[Placed]:
    """The stages of a save."""
    rows = [(label(row), row["begin"], row["end"]) for row in document["timeline"]]
    yield "A save of ", spans("a save from the stall to the last tier", rows)


def of_storage(document: dict[str, Any]) -> Iterator[Placed]:
    """Predicted against measured, and rates over concurrency and size beside the model's lines."""
    rest = [point for point in document["points"] if not point["fitted"]]
    families = list(dict.fromkeys(_family(point) for point in rest))
    below = "Median absolute error: other sizes"
    for family in families:
        of = [point for point in rest if _family(point) == family]
        title = f"{family}: points left out of the fit"
        yield below, against(title, {form: _pairs(of, form) for form in FORMS[:3]})
    title = "all points left out of the fit, with D/r + C/N as printed"
    yield below, against(title, {form: _pairs(rest, form) for form in FORMS})
    for family in families:
        for operation in ("put", "get"):
            for by in ("concurrency", "request"):
                yield "The fitted model", _scaling(document, family, operation, by)


def _bars(peers: dict[str, dict[str, float]], scale: float = 1) -> list[Bar]:
    return [
        Bar(
            name,
            found.get("low", found["min"]) * scale,
            found["median"] * scale,
            found.get("high", found["max"]) * scale,
        )
        for name, found in peers.items()
    ]


def _family(entry: dict[str, Any]) -> str:
    return str(entry["store"]).partition("-")[0]


def _pairs(points: list[dict[str, Any]], form: str) -> list[tuple[float, float]]:
    return [(point["seconds"]["median"], point["predicted"][form]) for point in points]


def _scaling(document: dict[str, Any], family: str, operation: str, by: str) -> Picture:
    found = []
    for fit in document["fits"]:
        if _family(fit) != family or fit["operation"] != operation:
            continue
        of = [
            point
            for point in document["points"]
            if (point["store"], point["operation"], point["varied"])
            == (fit["store"], operation, "D")
        ]
        largest = max(point["request"] for point in of)
        fixed = ("request", largest) if by == "concurrency" else ("concurrency", _CONCURRENCY)
        kept = sorted((p for p in of if p[fixed[0]] == fixed[1]), key=lambda p: p[by])
        found.append(_series(fit, kept, by))
    fixed_text = "largest requests" if by == "concurrency" else f"{_CONCURRENCY} at once"
    x = "requests at once" if by == "concurrency" else "MiB of a request"
    return curves(f"{family} {operation}, {fixed_text}", x, "GB/s", found)


def _series(fit: dict[str, Any], points: list[dict[str, Any]], by: str) -> Series:
    curve = Curve(**fit["curve"])
    middle, low, high = (
        [point["bytes"] / GB / point["seconds"][at] for point in points]
        for at in ("median", "high", "low")  # the longest time is the lowest rate
    )
    return Series(
        fit["store"],
        [point[by] if by == "concurrency" else point[by] / _MIB for point in points],
        middle,
        low,
        high,
        [curve.rate(point["request"], point["concurrency"]) / GB for point in points],
    )
