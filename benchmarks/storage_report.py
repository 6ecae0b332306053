"""The storage-time comparison as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.report import heading, row
from benchmarks.storage_judge import FORMS
from tierstore.model.formulas import worked_examples

_KINDS = {
    "fitted": "the points of the fit",
    "held out": "other sizes and concurrencies, left out of the fit",
    "C": "more on the store",
    "r": "the rate limited",
}


def markdown(document: dict[str, Any]) -> str:
    """Return the errors of every form by store, the fitted numbers, and the source's example."""
    lines = [heading(document)]
    for kind, title in _KINDS.items():
        lines += ["", f"### Median absolute error: {title}", "", *_errors(document["fits"], kind)]
    lines += ["", "### The fitted model", "", *_fitted(document["fits"]), ""]
    lines += ["### The source's worked example", "", *_example(), ""]
    lines += [f"- {name}: {text}" for name, text in document["settings"].items()]
    return "\n".join(lines) + "\n"


def _errors(fits: list[dict[str, Any]], kind: str) -> list[str]:
    lines = [
        "| store | N | operation | points | calibrated | D/r | (D + C)/r, derived "
        "| D/r + C/N, printed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fit in fits:
        if found := fit["errors"].get(kind):
            cells = [fit["store"], str(fit["nodes"]), fit["operation"], str(found["points"])]
            cells += [share(found[form]) for form in FORMS]
            lines.append(row(cells))
    return lines


def share(error: float) -> str:
    """Return a relative error as people read it: in percent, or as a factor."""
    return f"{error:.0%}" if error < 10 else f"x {error:.2g}"


def _fitted(fits: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| store | operation | request latency, ms | MB/s of one request | contention | coherence "
        "| rate r, MB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for fit in fits:
        curve, between = fit["curve"], fit["intervals"]
        rates = sorted(1e-6 / per_byte for per_byte in between["per_byte"])
        cells = [
            fit["store"],
            fit["operation"],
            _between(curve["latency"] * 1e3, [x * 1e3 for x in between["latency"]], 2),
            _between(1e-6 / curve["per_byte"], rates, 0),
            _between(curve["contention"], between["contention"], 2),
            _between(curve["coherence"], between.get("coherence", (0, 0)), 3),
            f"{fit['rate'] / 1e6:.0f}",
        ]
        lines.append(row(cells))
    return lines


def _between(value: float, interval: Any, digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f}-{_short(high, digits)})"


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 1e5 else f"{value:.0e}"


def _example() -> list[str]:
    lines = ["| | printed | its own formula gives | printed is too large by |", "|---|---|---|---|"]
    lines += [
        f"| {x.what} | {x.printed:.4g} {x.unit} | {x.computed:.5g} {x.unit} | x {x.factor:.3g} |"
        for x in worked_examples()
    ]
    return lines
