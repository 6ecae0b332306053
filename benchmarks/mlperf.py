"""MLPerf Storage's checkpoints, scaled down: so many writes, then so many reads of them.

Each process plays one rank of the published layout, from the first on, and saves what that rank
saves, every tensor cut to a share. A turn takes as long as its slowest rank. What is written has
reached the disk or the store when it counts (fsync), and page caches are dropped before each read.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, mlperf_report
from benchmarks.measure import Sample, summary
from benchmarks.mlperf_layout import shards
from benchmarks.options import Disk, JsonFile, Peers, chosen
from benchmarks.peers import PEERS, REMOTE, by_place
from benchmarks.ranks import PeerProcess, minio_bucket
from tierstore.model.workload import BYTES_PER_PARAMETER, SHAPES

_DEFAULT = ("tierstore", "dcp file, 4 threads", "tierstore s3", "s3torchconnector")
_MOST_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured, and where.

    Attributes:
        scale: share of each rank's published size.
        processes: ranks to play at most.
        turns: checkpoints to write, and then to read.
        place: a folder on the disk to measure.
        rest: seconds before each turn.
    """

    scale: float
    processes: int
    turns: int
    place: Path
    rest: float


def _measure(peers: list[PeerProcess], options: Options) -> dict[str, dict[str, list[Sample]]]:
    """Return the samples by peer and measure; peers take turns, another one first each time."""
    found: dict[str, dict[str, list[Sample]]] = {peer.name: {} for peer in peers}
    turns = [(command, step) for command in ("save", "load") for step in range(options.turns)]
    for number, (command, step) in enumerate(turns):
        for at in range(len(peers)):
            peer = peers[(number + at) % len(peers)]
            machine.drop_caches(peer.place)
            time.sleep(options.rest)
            found[peer.name].setdefault(command, []).append(peer.ask(command, step))
        print(f"{command} {step + 1}", file=sys.stderr)
    return found


def _layout(name: str, world: int, scale: float) -> dict[str, Any]:
    """Return what is played of a layout; bytes are the scaled ones."""
    shape = SHAPES[name]
    sizes = [
        sum(n * (2 if dtype == "bfloat16" else 4) for n, dtype in shards(shape, rank).values())
        for rank in range(world)
    ]
    return {
        "ranks": shape.ranks,
        "played": world,
        "parallel": f"TP {shape.tensor} x PP {shape.pipeline} x DP {shape.data}, ZeRO {shape.zero}",
        "published_bytes": shape.parameters * BYTES_PER_PARAMETER,
        "scale": scale,
        "largest_rank_bytes": max(sizes) * scale,
    }


def _shape(name: str, names: list[str], bucket: str, options: Options) -> dict[str, Any]:
    """Measure one shape: peers on disk, then peers on S3."""
    world = min(options.processes, SHAPES[name].ranks)
    document: dict[str, Any] = {"layout": _layout(name, world, options.scale), "peers": {}}
    for group in by_place(names):
        with machine.scratch(options.place) as folder, contextlib.ExitStack() as stack:
            peers = []
            for number, peer in enumerate(group):
                where = f"{bucket if peer in REMOTE else folder}/mlperf-{name}-{number}"
                peers.append(PeerProcess(peer, where, name, world, options.scale))
                stack.callback(peers[-1].close)
                document["bytes"] = peers[-1].nbytes
            for peer, samples in _measure(peers, options).items():
                document["peers"][peer] = {what: summary(s) for what, s in samples.items()}
    return document


def run(
    *,
    json_file: JsonFile = None,
    shape: Annotated[list[str] | None, typer.Option(help="8b, 70b, 405b, 1t; repeatable.")] = None,
    scale: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Share of each rank's published size.")
    ] = 0.01,
    processes: Annotated[
        int, typer.Option(min=1, help="Ranks to play, up to those of the layout.")
    ] = _MOST_PROCESSES,
    turns: Annotated[int, typer.Option(min=1, help="Checkpoints to write, then to read.")] = 10,
    peer: Peers = None,
    place: Disk = Path(),
    rest: Annotated[float, typer.Option(min=0, help="Seconds before each turn.")] = 1.0,
) -> None:
    """MLPerf Storage's checkpoint shapes in the published layout, written and read back."""
    shapes, names = chosen(shape or ["8b"], SHAPES), chosen(peer or _DEFAULT, PEERS)
    options = Options(scale, processes, turns, place, rest)
    document: dict[str, Any] = {"machine": machine.describe(place), "rounds": turns}
    document["settings"] = {name: PEERS[name].settings for name in names}
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(minio_bucket()) if any(n in REMOTE for n in names) else ""
        document["mlperf"] = {each: _shape(each, names, bucket, options) for each in shapes}
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(mlperf_report.markdown(document))
