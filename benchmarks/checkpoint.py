"""Save and load one state with this project and its peers.

What is measured, and how: docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, report
from benchmarks.measure import Sample, summary
from benchmarks.options import Disk, JsonFile, Peers, chosen
from benchmarks.peers import LOCAL, PEERS, REMOTE, by_place
from benchmarks.ranks import PeerProcess, minio_bucket

_SMALL = 65_536  # no file of tensors is smaller, in any peer's layout of these states

SCENARIOS = {
    "300 tensors": ("300 tensors", 1),
    "10,000 tensors": ("10,000 tensors", 1),
    "1 tensor": ("1 tensor", 1),
    "2 processes": ("300 tensors", 2),
}


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured, and where.

    Attributes:
        rounds: counted turns of every peer.
        place: a folder on the disk to measure.
        scale: share of the full size.
        patience: seconds that a peer's first turn may take for it to have more.
        rest: seconds before every use of the disk. Virtual disks have a budget that fills up with
            time; without a rest each peer would have what the one before it left.
    """

    rounds: int
    place: Path
    scale: float
    patience: float
    rest: float


@dataclass
class Results:
    """Samples by peer and measure, as they come in.

    Attributes:
        errors: of the peers that failed.
        once: the seconds of a turn of the peers that were too slow to be asked again.
        disk: bytes per second of the disk's own direct reads, one a round.
        nbytes: of the state.
    """

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)
    disk: list[float] = field(default_factory=list)
    nbytes: int = 0

    def take(self, peer: PeerProcess, measure: str, command: str, step: int) -> None:
        """Ask and keep the answer; a peer that failed once is left out from then on."""
        if peer.name in self.errors:
            return
        try:
            sample = peer.ask(command, step)
        except RuntimeError as error:
            self.errors[peer.name] = str(error)
            return
        self.samples.setdefault(peer.name, {}).setdefault(measure, []).append(sample)


def _round(peers: list[PeerProcess], results: Results, step: int, rest: float) -> None:
    """One turn of every peer at every measure, each time with another one first."""
    first = step % len(peers)
    peers = peers[first:] + peers[:first]
    for command, measure, number in (("save", "save", 2 * step), ("stall", "async", 2 * step + 1)):
        for peer in peers:
            os.sync()  # what others left to be written is not this one's to wait for
            time.sleep(rest)
            results.take(peer, measure, command, number)
    for peer in peers:
        machine.drop_caches(peer.place)
        time.sleep(rest)
        results.take(peer, "load cold", "load", 2 * step)
        if peer.place is not None:
            machine.fill_cache(peer.place)
        results.take(peer, "load warm", "load", 2 * step)


def _forget(peers: list[PeerProcess], bucket: str) -> None:
    """Delete the tensors stored so far; what names them may stay."""
    for peer in peers:
        for path in peer.place.rglob("*") if peer.place else ():
            if path.is_file() and path.stat().st_size > _SMALL:
                path.unlink()
    if bucket:
        import boto3

        s3 = boto3.resource("s3")
        for found in s3.Bucket(bucket.removeprefix("s3://")).objects.all():
            if found.size > _SMALL:
                found.delete()
        s3.meta.client.close()


def _disk_rate(folder: Path, rest: float) -> float | None:
    files = sorted(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    if not files:
        return None
    machine.drop_caches(folder)
    time.sleep(rest)
    with contextlib.suppress(OSError):
        return machine.direct_read_rate(files[-1])
    return None


@contextlib.contextmanager
def _peers(
    names: list[str], scenario: str, folder: Path, bucket: str, scale: float
) -> Iterator[list[PeerProcess]]:
    with contextlib.ExitStack() as stack:
        running = []
        for name in names:
            slug = re.sub(r"\W+", "-", f"{scenario} {name}")
            where = f"{bucket}/{slug}" if name in REMOTE else str(folder / slug)
            shape, world = SCENARIOS[scenario]
            running.append(PeerProcess(name, where, shape, world, scale / world))
            stack.callback(running[-1].close)
        yield running


def _scenario(scenario: str, names: list[str], bucket: str, options: Options) -> Results:
    """Measure all peers of a scenario, those of one place after those of the other."""
    results = Results()
    for group in by_place(names):
        with machine.scratch(options.place) as made:
            folder = Path(made)
            with _peers(group, scenario, folder, bucket, options.scale) as peers:
                _turns(scenario, peers, results, folder, bucket, options)
    return results


def _turns(
    scenario: str,
    peers: list[PeerProcess],
    results: Results,
    folder: Path,
    bucket: str,
    options: Options,
) -> None:
    """Warm up, then measure round after round."""
    results.nbytes = max([results.nbytes, *(peer.nbytes for peer in peers)])
    warm_up = Results(errors=results.errors)
    for step in range(options.rounds + 1):
        _round(peers, results if step else warm_up, step, options.rest)
        if step in (0, options.rounds) and scenario == "1 tensor":
            for peer in peers:
                machine.drop_caches(peer.place)
                results.take(peer, "slice", "slice", 2 * step)
        if not step:
            _keep_first(warm_up, results)
            slow = {p.name: p.seconds for p in peers if p.seconds > options.patience}
            results.once |= slow
            results.samples |= {name: warm_up.samples[name] for name in slow}
            peers = [peer for peer in peers if peer.name not in slow]
        if (rate := _disk_rate(folder, options.rest)) is not None:
            results.disk.append(rate)
        _forget(peers, bucket)


def _keep_first(warm_up: Results, results: Results) -> None:
    """The first save ever is a figure of its own: it pays for the staging memory."""
    for name, measures in warm_up.samples.items():
        if "save" in measures:
            results.samples.setdefault(name, {})["first save"] = measures["save"]


def run(
    *,
    json_file: JsonFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted turns of every peer.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="Scenario; may be repeated.")] = None,
    peer: Peers = None,
    place: Disk = Path(),
    scale: Annotated[float, typer.Option(min=0.001, max=1, help="Share of 1 GiB.")] = 1.0,
    patience: Annotated[
        float, typer.Option(help="Seconds; a peer with a longer turn is measured once.")
    ] = 120.0,
    rest: Annotated[float, typer.Option(min=0, help="Seconds before each use of the disk.")] = 2.0,
) -> None:
    """Stall, time to durable, cold and warm load, client CPU and memory, beside the peers'."""
    scenarios = chosen(only, SCENARIOS)
    names = chosen(peer or [*LOCAL, *REMOTE], PEERS)
    options = Options(rounds, place, scale, patience, rest)
    document: dict[str, Any] = {"machine": machine.describe(), "rounds": rounds, "scenarios": {}}
    document["settings"] = {name: PEERS[name].settings for name in names}
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(minio_bucket()) if any(n in REMOTE for n in names) else ""
        for scenario in scenarios:
            print(f"{scenario}: {len(names)} peers, {rounds} rounds", file=sys.stderr)
            found = _scenario(scenario, names, bucket, options)
            document["scenarios"][scenario] = {
                "bytes": found.nbytes,
                "disk_direct_read": found.disk,
                "errors": found.errors,
                "measured_once": found.once,
                "peers": {
                    name: {measure: summary(samples) for measure, samples in measures.items()}
                    for name, measures in found.samples.items()
                },
            }
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(report.markdown(document))
    if any(part["errors"] for part in document["scenarios"].values()):
        raise typer.Exit(1)
