"""Migrate folders between this machine's disk, a real MinIO and a real HDFS, with our peers.

Everything runs on this machine and shares its processors and its disk with the clients: ratios
tell more than rates.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from benchmarks import machine, rates
from benchmarks.hdfs_peers import LeftOutError
from benchmarks.migrate_ends import Digest, Kind, Site, make, shapes
from benchmarks.migrate_peers import PEERS, Migrator, UnableError
from benchmarks.options import JsonFile, Peers, chosen
from benchmarks.turns import Results
from tierstore.testing.servers import hdfs, minio

DIRECTIONS = ("local to S3", "S3 to local", "HDFS to S3", "S3 to HDFS")
_PATIENCE = 120.0  # seconds; what takes longer is measured once
_LAUNCH = Path(__file__).with_name("launch.py")


def _ends(workload: str) -> tuple[Kind, Kind, str]:
    direction, _, shape = workload.partition(", ")
    source, _, target = direction.partition(" to ")
    return cast("Kind", source), cast("Kind", target), shape


class Peer:
    """A program that is asked to migrate; see `benchmarks.turns.Asked`.

    Attributes:
        sources: what the folder of each shape holds.
    """

    def __init__(self, name: str, migrator: Migrator, site: Site) -> None:
        self.name, self.migrator = name, migrator
        self.sources: dict[str, dict[str, Digest]] = {}
        self._site = site

    def ask(self, workload: str, turn: int, deadline: float) -> dict[str, Any]:
        """Migrate once, from a disk that has to read, and check what arrived."""
        origin, goal, shape = _ends(workload)
        source = self._site.end(origin, shape.replace(" ", "-"))
        target = self._site.end(goal, re.sub(r"\W+", "-", f"{self.name}-{workload}-{turn}"))
        os.sync()
        machine.forget(self._site.folder.parent)  # servers' data too, but no program
        try:
            answer = self.copy(source, target, deadline)
            if "wall" in answer:
                self._site.check(target, self.sources[shape])
        except UnableError as error:
            return {"unable": str(error)}
        except RuntimeError as error:
            return {"error": str(error)}
        finally:
            if "small" not in shape:  # ext4 gives no inode again for minutes, and searches long
                self._site.clear(target)
            shutil.rmtree(self._site.folder / "state", ignore_errors=True)
        return answer

    def copy(self, source: Any, target: Any, deadline: float) -> dict[str, Any]:
        """Run the program; return a sample, an error, or that it hung."""
        # Python programs have their bytecode, as they do wherever they are used.
        usual = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(deadline)]
        done = subprocess.run(
            [*launch, *self.migrator.command(source, target)],
            env=usual | self._site.environment() | self.migrator.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextlib.contextmanager
def _site(place: Path, workloads: Sequence[str]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(machine.scratch(place)))
        s3 = stack.enter_context(minio(root / "minio"))
        bucket = s3.new_bucket()
        stack.callback(s3.remove_bucket, bucket)
        cluster = None
        if any("HDFS" in workload for workload in workloads):
            settings = {"dfs.replication": "1"}
            cluster = stack.enter_context(hdfs(root / "hdfs", settings=settings))
            cluster.client().make_folder("/bench")
        folder = root / "files"
        folder.mkdir()
        yield Site(s3, bucket, cluster, folder)


def _peers(site: Site, names: Sequence[str], results: Results) -> list[Peer]:
    found = []
    for name in names:
        try:
            found.append(Peer(name, PEERS[name](site), site))
        except LeftOutError as error:
            results.left_out[name] = str(error)
            print(f"LEFT OUT: {name}: {error}", file=sys.stderr)
    return found


def _seed(site: Site, workloads: Sequence[str], scale: float) -> dict[str, dict[str, Digest]]:
    """Put the files where migrations begin: with this project, and checked by another path."""
    wanted: dict[str, dict[str, Digest]] = {}
    mover = Peer("seed", PEERS["tierstore"](site), site)
    for workload in workloads:
        origin, _, shape = _ends(workload)
        name = shape.replace(" ", "-")
        made = site.end("local", name)
        if shape not in wanted:
            wanted[shape] = make(Path(made.path), shapes(scale)[shape])
        there = site.end(origin, name)
        if origin != "local":
            answer = mover.copy(made, there, 3600)
            if "wall" not in answer:
                raise RuntimeError(f"{workload}: {answer}")
            site.check(there, wanted[shape])
    shutil.rmtree(site.folder / "state", ignore_errors=True)
    return wanted


def _document(
    results: Results, peers: list[Peer], workloads: Sequence[str], scale: float
) -> dict[str, Any]:
    counts = [len(taken) for found in results.samples.values() for taken in found.values()]
    moved = {}
    for workload in workloads:
        files = shapes(scale)[_ends(workload)[2]]
        moved[workload] = files.count, files.count * files.size
    settings = {peer.name: peer.migrator.settings for peer in peers}
    return results.document(max(counts, default=0), settings, moved)


def _workloads(only: list[str] | None) -> list[str]:
    every = [f"{direction}, {shape}" for direction in DIRECTIONS for shape in shapes(1)]
    found = [name for name in every if not only or any(text in name for text in only)]
    if not found:
        raise typer.BadParameter(f"nothing of that is in: {'; '.join(every)}")
    return found


def run(
    *,
    json_file: JsonFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every peer.")] = 3,
    peer: Peers = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help='Such as "S3 to local" or "small files"; may be repeated.'),
    ] = None,
    scale: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the files.")] = 1.0,
    place: Annotated[
        Path | None, typer.Option(help="A folder of the disk for files and servers' data.")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds that a migration may take.")] = 300.0,
    limit: Annotated[float, typer.Option(help="Seconds after which no more turns begin.")] = 1e9,
) -> None:
    """Whole folders between a disk, S3 and HDFS: rates and client CPU, beside the peers'."""
    names, workloads = chosen(peer, PEERS), _workloads(only)
    results = Results({name: name for name in workloads}, _PATIENCE, deadline)
    with _site(place or Path(tempfile.gettempdir()), workloads) as site:
        peers = _peers(site, names, results)
        sources = _seed(site, workloads, scale)
        for each in peers:
            each.sources = sources
        end = time.monotonic() + limit
        for turn, workload in product(range(rounds), workloads):
            first = turn % len(peers)
            for each in peers[first:] + peers[:first] if time.monotonic() < end else ():
                results.take(each, workload, turn, counts=True)
            print(f"round {turn + 1} of {rounds}: {workload}", file=sys.stderr)
    document = _document(results, peers, workloads, scale)
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(rates.markdown(document))
    if results.errors:
        raise typer.Exit(1)
