"""From measured points to a cluster: what each tier takes, what a save stalls, what is lost.

The curve that one machine measured is taken for one node: more requests in flight than were
measured move no more bytes. Nodes add up until the store's own ceiling, if that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tierstore.image.layout import SEGMENT_BYTES
from tierstore.model.curve import pipelined, roofline, serial
from tierstore.model.fit import Fit
from tierstore.model.interval import Expected, best_interval, daly, durable_after, expected, young
from tierstore.model.job import Job, Rung
from tierstore.model.points import Measured, TierPoints
from tierstore.model.tail import slowest
from tierstore.model.workload import Cluster, Workload

_P90 = 1.2816  # of a normal distribution, in its sigma


@dataclass(frozen=True, slots=True)
class TierForecast:
    """One tier of a ladder, for one save of the whole job.

    Attributes:
        rung: what closed form and simulator use.
        stages: stage -> seconds of the median node; they are serial.
        rate: bytes/s of one node while it writes.
        limit: what holds the rate: "device", "network", "CPU", or "store" for all nodes together.
        write: seconds of the slowest node.
        read: the same of a restore.
        notes: where this goes beyond what was measured.
    """

    rung: Rung
    stages: Mapping[str, float]
    rate: float
    limit: str
    write: float
    read: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A job on a cluster.

    Attributes:
        workload: what is saved.
        rank_bytes: of every rank; they are balanced.
        tiers: in the order of the ladder.
        job: for `simulate`, at the interval looked at.
        expected: the closed form there.
        suggested: the interval of the highest goodput at which every tier keeps up.
        young: Young's interval, if nothing but the stall counted.
        daly: Daly's.
    """

    workload: Workload
    rank_bytes: float
    tiers: tuple[TierForecast, ...]
    job: Job
    expected: Expected
    suggested: float
    young: float
    daly: float

    @property
    def rungs(self) -> list[tuple[str, float]]:
        """Seconds from the begin of a save until it is staged, then durable on each tier."""
        staged = self.job.stall
        writes = {tier.rung.name: tier.write for tier in self.tiers}
        return [("staged", staged), *durable_after(staged, writes).items()]


def predict(
    measured: Measured,
    workload: Workload,
    cluster: Cluster,
    *,
    every: Mapping[str, int] | None = None,
    interval: float | None = None,
) -> Forecast:
    """Predict a job.

    Args:
        measured: the points.
        workload: what is saved.
        cluster: where.
        every: tier -> it takes every n-th save, for the tiers of the ladder in order; by default
            all that were measured, as they were configured.
        interval: seconds of work between saves; by default what is suggested.

    Raises:
        ConfigError: a tier was not measured.
        ModelError: points are missing or a number is outside of its domain; scipy is missing.
    """
    wanted = every or {tier.name: tier.every for tier in measured.tiers}
    tiers = [
        forecast_tier(measured, measured.tier(name), workload, cluster, every=n)
        for name, n in wanted.items()
    ]
    return of_tiers(measured, workload, cluster, tiers, interval)


def of_tiers(
    measured: Measured,
    workload: Workload,
    cluster: Cluster,
    tiers: Sequence[TierForecast],
    interval: float | None = None,
) -> Forecast:
    """Predict a job on a ladder of tiers that were looked at before."""
    tiers = _fed(tiers, cluster.nodes)
    rank_bytes = workload.nbytes / (cluster.nodes * cluster.gpus)
    job = Job(
        cluster.nodes,
        cluster.mtbf,
        1.0 if interval is None else interval,
        rank_bytes / (cluster.copy or _copy_rate(measured, cluster)),
        cluster.restart,
        tuple(tier.rung for tier in tiers),
        cluster.node_loss,
        cluster.images,
    )
    suggested = best_interval(job)
    job = job.at(suggested if interval is None else interval)
    return Forecast(
        workload,
        rank_bytes,
        tuple(tiers),
        job,
        expected(job),
        suggested,
        young(job.stall, job.mtbf),
        daly(job.stall, job.mtbf),
    )


def _copy_rate(measured: Measured, cluster: Cluster) -> float:
    """Return bytes/s of one rank's copy, where ranks share the node's cores."""
    cores = measured.machine.get("cores", cluster.gpus)
    share = cores / cluster.gpus if isinstance(cores, int | float) else 1.0
    return measured.copy * min(1.0, share)


def _fed(tiers: Sequence[TierForecast], nodes: int) -> list[TierForecast]:
    """Feed each tier from the one above, as when the next save has the memory: a pipeline."""
    found = list(tiers[:1])
    for above, tier in pairwise(tiers):
        rung = replace(tier.rung, write=pipelined([tier.rung.write, above.rung.read]))
        found.append(replace(tier, rung=rung, write=rung.write_with(slowest(nodes, rung.spread))))
    return found


def forecast_tier(
    measured: Measured,
    tier: TierPoints,
    workload: Workload,
    cluster: Cluster,
    *,
    every: int | None = None,
) -> TierForecast:
    """Predict what one tier takes for a save and a restore of the whole job.

    Raises:
        ModelError: points are missing; scipy is missing.
    """
    node = _Node(measured, tier, workload.nbytes / cluster.nodes, cluster)
    shared = not tier.local or tier.name in cluster.shared
    ceiling = cluster.ceilings.get(tier.name) if shared else None
    reading = node.nbytes / node.rate("read", tier.read_size)[0]
    rate, limit = node.rate("write", tier.part_size)
    stages = node.stages(node.nbytes / rate, reading, shared=shared)
    floor = workload.nbytes / ceiling if ceiling else 0.0
    rung = Rung(
        tier.name,
        serial(stages.values()),
        reading,
        every or tier.every,
        shared,
        floor * (2 if tier.reads_back else 1),
        floor,
        node.spread(),
    )
    factor = slowest(cluster.nodes, rung.spread)
    write = rung.write_with(factor)
    store = write > rung.write * factor * (1 + 1e-9)
    return TierForecast(
        rung,
        stages,
        rate,
        "store" if store else limit,
        write,
        rung.read_with(factor),
        tuple(node.notes()),
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """One node and one tier."""

    measured: Measured
    tier: TierPoints
    nbytes: float
    cluster: Cluster

    def stages(self, writing: float, reading: float, *, shared: bool) -> dict[str, float]:
        """Return the serial stages of a save, of which two are known already."""
        ranks = self.cluster.gpus * (self.cluster.nodes if shared else 1)
        commit, files = self.tier.fit("commit"), self._files()
        part = self._request(self.tier.part_size)
        together = min(self._together(commit), files)
        found = {
            "write": writing,
            "commit": commit.curve.seconds(part, together) * max(1.0, files / together),
        }
        if self.tier.reads_back:
            found["read back"] = reading
        return {**found, "manifest": self._manifest(ranks)}

    def rate(self, operation: str, request: int) -> tuple[float, str]:
        """Return bytes/s of requests of at most a size, and what holds them."""
        found = self.tier.fit(operation)
        size = self._request(request)
        many = min(self._together(found), max(1.0, self.nbytes / size))
        return roofline(
            device=found.curve.rate(size, many),
            network=None if self.tier.local else self.cluster.network,
            CPU=self._processors("put" if operation == "write" else "get"),
        )

    def spread(self) -> float:
        """Return sigma of a node's time: that of its requests, averaged out, and the nodes' own."""
        puts = [p for p in self.tier.points if p.operation == "put"]
        one = max((math.log(p.p90 / p.p50) / _P90 for p in puts[-1:]), default=0.0)
        requests = max(1.0, self.nbytes / self._request(self.tier.part_size))
        return math.hypot(one / math.sqrt(requests), self.cluster.spread)

    def notes(self) -> Iterator[str]:
        """Yield where a save goes beyond what was measured."""
        size, most = self._request(self.tier.part_size), self.tier.fit("write").most
        if size > most[1] * 1.01:
            yield (
                f"requests of {size / 2**20:.0f} MiB are beyond the {most[1] / 2**20:.0f} "
                "MiB that were measured"
            )
        wanted = self.cluster.gpus * self.tier.concurrency
        if wanted > most[2]:
            yield (
                f"{wanted} requests in flight on a node: taken as fast as {most[2]:.0f}, "
                "the most that were measured"
            )
        if not self.tier.local and self.tier.name not in self.cluster.ceilings:
            yield "the store is taken to serve every node as it served one"

    def _request(self, most: int) -> float:
        """Return bytes of a request that may have so many: a rank may have fewer."""
        return min(most, max(1.0, self.nbytes / self.cluster.gpus))

    def _files(self) -> float:
        rank = self.nbytes / self.cluster.gpus
        return float(self.cluster.gpus * math.ceil(rank / SEGMENT_BYTES))

    def _together(self, found: Fit) -> float:
        """Requests in flight of all ranks on the node, as far as that was measured."""
        return float(min(self.cluster.gpus * self.tier.concurrency, found.most[2]))

    def _manifest(self, ranks: int) -> float:
        """Return seconds from the last file to the commit: fragment, listing, reading, commit."""
        put, read, listing = (self.tier.fit(name) for name in ("put", "read", "list"))
        small, together = put.most[0], min(ranks, self.tier.concurrency, read.most[2])
        return (
            2 * put.curve.seconds(small)
            + listing.curve.seconds(ranks)
            + read.curve.seconds(small, together) * ranks / together
        )

    def _processors(self, operation: str) -> float | None:
        """Bytes/s for which the node's processors suffice, from what this client used."""
        found = [p for p in self.tier.points if p.operation == operation and p.nbytes]
        cores = self.measured.machine.get("cores")
        if not found or not isinstance(cores, int | float):
            return None
        largest = max(found, key=lambda p: (p.nbytes, p.concurrency))
        return cores * largest.nbytes / largest.cpu if largest.cpu > 0 else None


def with_every(tier: TierForecast, every: int) -> TierForecast:
    """Return the tier taking every n-th save."""
    return replace(tier, rung=replace(tier.rung, every=every))
