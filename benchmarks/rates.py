"""The figures of a comparison of workloads as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.report import GB, heading, row, spread


def markdown(document: dict[str, Any]) -> str:
    """Return one table a workload: medians, with minimum and maximum."""
    lines = [heading(document)]
    for workload, found in document["workloads"].items():
        lines += ["", *_workload(workload, found)]
    lines += ["", *(f"- {name}: {text}" for name, text in document["settings"].items())]
    left_out: dict[str, list[str]] = {}
    for name, why in document["left_out"].items():
        left_out.setdefault(why, []).append(name)
    lines += [f"- left out ({why}): {'; '.join(names)}" for why, names in left_out.items()]
    lines += [f"- measured once, without a warm-up: {name}" for name in document["measured_once"]]
    lines += [f"- {name} failed: {error}" for name, error in document["errors"].items()]
    return "\n".join(lines) + "\n"


def _workload(workload: str, found: dict[str, Any]) -> list[str]:
    size, requests = found["bytes"], found["requests"]
    lines = [
        f"### {workload}: {requests} of {_size(size / requests)}",
        "",
        "| | seconds | GB/s | per second | client CPU s/GB | extra memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in found["peers"].items():
        seconds = figures["wall"]["median"]
        cells = [
            name,
            spread(figures["wall"], 1, 2),
            f"{size / GB / seconds:.3f}",
            f"{requests / seconds:.1f}",
            spread(figures["cpu"], GB / size, 2),
            spread(figures["extra_memory"], 1 / 2**20, 0),
        ]
        lines.append(row(cells))
    return lines


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**20:.4g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.4g} KiB"
