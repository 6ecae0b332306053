"""A comparison's figures as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

GB = 1e9


def markdown(document: dict[str, Any]) -> str:
    """Return one table a scenario: medians with their intervals."""
    lines = [heading(document)]
    for scenario, found in document["scenarios"].items():
        lines += ["", *_scenario(scenario, found)]
    lines += ["", *(f"- {name}: {text}" for name, text in document.get("settings", {}).items())]
    return "\n".join(lines) + "\n"


def heading(document: dict[str, Any]) -> str:
    """Return the line that says on what machine the figures were taken, and how."""
    machine = document["machine"]
    disk = f", {machine['disk']}, load {machine['load']} before" if "disk" in machine else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, torch {machine['torch']}{disk}; "
        f"medians of {document['rounds']} alternating runs (their 95 % bootstrap interval)"
    )


def _scenario(scenario: str, found: dict[str, Any]) -> list[str]:
    size = found["bytes"]
    lines = [f"### {scenario}, {size / GB:.2f} GB"]
    if found["disk_direct_read"]:
        rate = statistics.median(found["disk_direct_read"]) / GB
        lines.append(f"The disk's own direct read: {rate:.2f} GB/s")
    lines += [
        "",
        "| | stall, ms | x bare copy | durable, s | CPU s/GB | first save: extra memory, MiB "
        "| cold load, s | warm load, s | CPU s/GB | slice reads, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    bare = _median(found["peers"].get("bare copy", {}), "async", "stall")
    lines += [_row(name, peer, size, bare) for name, peer in found["peers"].items()]
    lines += [
        f"- {name} took {seconds:.0f} s a turn and was measured once, without a warm-up"
        for name, seconds in found["measured_once"].items()
    ]
    lines += [f"- {name} failed: {error}" for name, error in found["errors"].items()]
    return lines


def _median(peer: dict[str, Any], measure: str, figure: str) -> float | None:
    value = peer.get(measure, {}).get(figure, {}).get("median")
    return None if value is None else float(value)


def _row(name: str, peer: dict[str, Any], size: int, bare: float | None) -> str:
    stall = _median(peer, "async", "stall")
    cells = [
        name,
        _spread(peer, "async", "stall", 1e3, 0),
        f"{stall / bare:.2f}" if stall is not None and bare else "",
        _spread(peer, "save", "wall", 1, 2),
        _spread(peer, "save", "cpu", GB / size, 2),
        _spread(peer, "first save", "extra_memory", 1 / 2**20, 0),
        _spread(peer, "load cold", "wall", 1, 2),
        _spread(peer, "load warm", "wall", 1, 2),
        _spread(peer, "load warm", "cpu", GB / size, 2),
        _spread(peer, "slice", "read", 1 / 2**20, 1),
    ]
    return row(cells)


def _spread(peer: dict[str, Any], measure: str, figure: str, unit: float, digits: int) -> str:
    found = peer.get(measure, {}).get(figure)
    if found is None:
        return ""
    return spread(found, unit, digits)


def row(cells: Iterable[str]) -> str:
    """Return a table's row."""
    return f"| {' | '.join(cells)} |"


def spread(found: dict[str, float], unit: float, digits: int) -> str:
    """Return a figure's median, with the median's 95 % interval where there is one."""
    keys = ("low", "median", "high") if "low" in found else ("min", "median", "max")
    low, middle, high = (found[key] * unit for key in keys)
    between = f" ({low:.{digits}f}-{high:.{digits}f})" if low != high else ""
    return f"{middle:.{digits}f}{between}"
