"""The figures of MLPerf's checkpoints as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.report import GB, heading, row, spread

_GIB = 1 << 30


def markdown(document: dict[str, Any]) -> str:
    """Return one table a shape: medians with their intervals."""
    lines = [heading(document)]
    for name, found in document["mlperf"].items():
        lines += ["", *_shape(name, found)]
    lines += ["", *(f"- {name}: {text}" for name, text in document["settings"].items())]
    return "\n".join(lines) + "\n"


def _shape(name: str, found: dict[str, Any]) -> list[str]:
    layout, size = found["layout"], found["bytes"]
    lines = [
        f"### MLPerf {name}: {layout['played']} of {layout['ranks']} ranks, {size / GB:.2f} GB",
        "",
        f"{layout['parallel']}; {layout['published_bytes'] / _GIB:,.1f} GiB as published, each "
        f"rank cut to {layout['scale']:g} of that; the largest rank has "
        f"{layout['largest_rank_bytes'] / 2**20:.0f} MiB. Seconds are the slowest rank's.",
        "",
        "| | write, s | GB/s | CPU s/GB | extra memory, MiB | read, s | GB/s | CPU s/GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer, figures in found["peers"].items():
        save, load = figures["save"], figures["load"]
        cells = [
            peer,
            spread(save["wall"], 1, 2),
            f"{size / GB / save['wall']['median']:.2f}",
            spread(save["cpu"], GB / size, 2),
            spread(save["extra_memory"], 1 / 2**20, 0),
            spread(load["wall"], 1, 2),
            f"{size / GB / load['wall']['median']:.2f}",
            spread(load["cpu"], GB / size, 2),
        ]
        lines.append(row(cells))
    return lines
