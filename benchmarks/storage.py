"""The storage-time comparison: measured seconds beside the source's formulas and our own model.

Data D, capacity C, rate r and the number of nodes N vary on MinIO, HDFS and a local disk. All
servers run on this machine and share its processors and its disk: more nodes bring no more of
either, so N shows what a model makes of it and not what a cluster would gain.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, storage_report
from benchmarks.options import Disk, chosen
from benchmarks.storage_judge import judge
from benchmarks.storage_points import Store
from benchmarks.storage_stores import STORES, opened
from tierstore.model.fit import require_scipy


def _rounds(points: list[dict[str, Any]]) -> str:
    """Say how many turns the stores had within their time."""
    counts = [len(point["times"]) for point in points]
    return str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def run(
    *,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all points here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted turns of every point.")] = 5,
    seconds: Annotated[
        float, typer.Option(help="After which no further round of a store begins.")
    ] = 300.0,
    store: Annotated[list[str] | None, typer.Option(help="Store; may be repeated.")] = None,
    place: Disk = Path(),
    scale: Annotated[float, typer.Option(min=0.001, max=1, help="Share of all sizes.")] = 1.0,
) -> None:
    """Seconds of transfers, predicted and measured, while D, C, r and N vary."""
    names = chosen(store, STORES)
    require_scipy()
    points: list[dict[str, Any]] = []
    for name in names:
        print(f"{name}: up to {rounds} rounds", file=sys.stderr)
        with opened(name, place) as tier:
            points += Store(name, tier, scale).measure(rounds, seconds)
    document = {
        "machine": machine.describe(place),
        "rounds": _rounds(points),
        "settings": {name: STORES[name].settings for name in names},
        "fits": judge(points),
        "points": points,
    }
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(storage_report.markdown(document))
