"""What a training job does with its checkpoints: the numbers that closed form and simulator share.

All times are seconds. A job works for `interval`, stalls while its state is copied, and works on
while the copy goes down the tiers. When it fails it starts again from the newest save that is
durable on a tier which outlived the failure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tierstore.errors import ModelError
from tierstore.model.checks import not_negative, positive, share, whole
from tierstore.model.tail import slowest


@dataclass(frozen=True, slots=True)
class Rung:
    """One tier, as a job with a given state on a given cluster meets it.

    Attributes:
        name: the tier's.
        write: seconds in which the median node makes its part of a save durable, if the store
            itself is no limit.
        read: the same for a restore.
        every: the tier takes every n-th save.
        shared: what it holds outlives the loss of a node.
        write_floor: seconds that the store needs for the save of all nodes together: bytes over its
            own bandwidth; 0 where it is no limit.
        read_floor: the same for a restore.
        spread: sigma of the lognormal spread between nodes; see `tierstore.model.tail`.

    Raises:
        ModelError: a number is outside of its domain.
    """

    name: str
    write: float
    read: float = 0.0
    every: int = 1
    shared: bool = False
    write_floor: float = 0.0
    read_floor: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        whole(f"'every' of tier {self.name}", self.every)
        for what in ("write", "read", "write_floor", "read_floor", "spread"):
            not_negative(f"{what} of tier {self.name}", getattr(self, what))

    def write_with(self, factor: float) -> float:
        """Return seconds of a save whose slowest node takes `factor` times the median.

        Nodes that write as much share a store fairly (max-min): the slowest gets the lesser of what
        it can take and an equal share, and its share never falls as others finish. So the save
        takes the longer of the slowest node alone and of the store with all.
        """
        return max(self.write * factor, self.write_floor)

    def read_with(self, factor: float) -> float:
        """Return seconds of a restore, in the same way."""
        return max(self.read * factor, self.read_floor)


@dataclass(frozen=True, slots=True)
class Job:
    """A job, its cluster and its ladder.

    Attributes:
        nodes: how many.
        node_mtbf: mean time between failures of one node; any failure ends the whole job's launch.
        interval: work between two saves.
        stall: what a save costs the trainer: the copy into staging memory.
        restart: from a failure until the restore begins: noticing, rescheduling, starting.
        rungs: the tiers, fastest first; the first takes every save.
        node_loss: share of failures in which a node comes back empty, so that what tiers on nodes
            hold is no whole checkpoint any more.
        images: how many saves may be in staging memory; the next one waits until a tier has one.

    Raises:
        ModelError: a number is outside of its domain, or there is no tier.
    """

    nodes: int
    node_mtbf: float
    interval: float
    stall: float
    restart: float
    rungs: tuple[Rung, ...]
    node_loss: float = 0.0
    images: int = 1

    def __post_init__(self) -> None:
        whole("number of nodes", self.nodes)
        whole("number of staging images", self.images)
        positive("mean time between failures of a node", self.node_mtbf, "s")
        positive("interval", self.interval, "s")
        not_negative("stall", self.stall, "s")
        not_negative("restart", self.restart, "s")
        share("share of failures that lose a node", self.node_loss)
        if not self.rungs:
            raise ModelError("there is no tier", hint="a job needs at least one to restore from")
        if self.rungs[0].every != 1:
            raise ModelError(
                f"tier {self.rungs[0].name} is the first, so 'every' is 1 and not "
                f"{self.rungs[0].every}"
            )

    @property
    def mtbf(self) -> float:
        """Mean time between failures of the job: of a node over how many there are."""
        return self.node_mtbf / self.nodes

    def at(self, interval: float) -> Job:
        """Return the job with another interval."""
        return replace(self, interval=interval)

    def tail(self, rung: Rung) -> float:
        """Return the median factor of the slowest node on a tier."""
        return slowest(self.nodes, rung.spread)
