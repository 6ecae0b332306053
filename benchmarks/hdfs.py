"""Write files to a real HDFS and read them back, with this project and its peers.

A namenode and two datanodes run on this machine, so they share its processors with the client:
ratios tell more than rates. Files have one replica, for every peer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from select import select
from typing import Annotated, Any

import typer

from benchmarks import rates
from benchmarks.hdfs_peers import PEERS, Place
from benchmarks.hdfs_worker import MIB, RANGES, shapes
from benchmarks.options import JsonFile, Peers, chosen
from benchmarks.turns import Results
from tierstore.testing.servers import HdfsServer, hdfs

WORKLOADS = {
    "write one file": "one file",
    "read one file": "one file",
    "1 range at once": "",
    "8 ranges at once": "",
    "write 16 files": "16 files",
    "read 16 files": "16 files",
    "write small files": "small files",
    "read small files": "small files",
}


class PeerProcess:
    """One peer in a process of its own.

    Attributes:
        place: where it stores.
        left_out: why it cannot run here, "" if it can.
        settings: what it runs with.
    """

    def __init__(self, name: str, place: Place, scale: float) -> None:
        self.name = name
        self.place = place
        self._command = [sys.executable, "-m", "benchmarks.hdfs_worker", name]
        self._command += [json.dumps(asdict(place)), str(scale)]
        self._process = self._start()
        hello = self._answer()
        self.left_out: str = hello.get("left_out", "")
        self.settings: str = hello.get("settings", "")

    def ask(self, workload: str, turn: int, deadline: float) -> dict[str, Any]:
        """Return the peer's answer: a sample, or an error, or that it is unable.

        One that has not answered after `deadline` seconds is ended and started anew.
        """
        if self._process.stdin is not None:
            print(json.dumps({"workload": workload, "round": turn}), file=self._process.stdin)
            self._process.stdin.flush()
        if self._process.stdout and select([self._process.stdout], [], [], deadline)[0]:
            return self._answer()
        self._process.kill()
        self._process.communicate()
        self._process = self._start()
        self._answer()
        return {"unable": f"it hung: no end after {deadline:.0f} s"}

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HADOOP_USER_NAME": self.place.user},
        )

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            return {"error": f"its process ended with {self._process.wait(60)}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def _peers(server: HdfsServer, names: list[str], scale: float) -> Iterator[list[PeerProcess]]:
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True)
        )
        running = []
        for name in names:
            slug = re.sub(r"\W+", "-", name)
            folder = f"/bench/{slug}"
            server.client().make_folder(folder)
            place = Place(
                server.endpoint, server.rpc, server.user, folder, str(Path(scratch) / slug)
            )
            running.append(PeerProcess(name, place, scale))
            stack.callback(running[-1].close)
        yield running


def _rounds(server: HdfsServer, peers: list[PeerProcess], rounds: int, results: Results) -> None:
    """Warm up, then measure round after round; peers take turns at every workload."""
    for turn in range(rounds + 1):
        for workload in WORKLOADS:
            order = peers[turn % len(peers) :] + peers[: turn % len(peers)]
            for peer in order:
                os.sync()  # what others left to be written is not this one's to wait for
                results.take(peer, workload, turn, counts=turn > 0)
        for peer in peers:
            server.client().remove(peer.place.folder)
            server.client().make_folder(peer.place.folder)
        print(f"round {turn} of {rounds}", file=sys.stderr)


def _moved(scale: float) -> dict[str, tuple[int, int]]:
    """Return the requests and bytes of each workload."""
    files = {name: (each.count, each.count * each.size) for name, each in shapes(scale).items()}
    return {name: files.get(shape, (RANGES, RANGES * MIB)) for name, shape in WORKLOADS.items()}


def run(
    *,
    json_file: JsonFile = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted turns of every peer.")] = 5,
    peer: Peers = None,
    scale: Annotated[float, typer.Option(min=0.01, max=1, help="Share of 1 GiB.")] = 1.0,
    patience: Annotated[
        float, typer.Option(help="Seconds; what a peer takes longer for is measured once.")
    ] = 45.0,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which a peer is taken to hang.")
    ] = 180.0,
) -> None:
    """Files, ranges and small files on HDFS: rates and client CPU, beside the peers'."""
    names = chosen(peer, PEERS)
    results = Results(WORKLOADS, patience, deadline)
    with hdfs(settings={"dfs.replication": "1"}) as server, _peers(server, names, scale) as peers:
        results.left_out |= {p.name: p.left_out for p in peers if p.left_out}
        for name, why in results.left_out.items():
            print(f"LEFT OUT: {name}: {why}", file=sys.stderr)
        there = [p for p in peers if not p.left_out]
        if not there:
            raise typer.Exit(1)
        _rounds(server, there, rounds, results)
        settings = {p.name: p.settings for p in there}
    document = results.document(rounds, settings, _moved(scale))
    text = rates.markdown(document)
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    if markdown:
        markdown.write_text(text)
    print(text)
    if results.errors:
        raise typer.Exit(1)
