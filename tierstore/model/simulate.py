"""A job of any size, simulated failure by failure.

Every node fails on its own (exponential, or Weibull: infant mortality or wear), each save meets
its own slowest node on every tier, tiers take one save after the other, and what was not durable
when the job failed is gone. Events are handled save by save, so a month of 10,000 nodes takes
seconds. A job that fails or saves all the time is simulated until so many events have happened.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

import numpy as np

from tierstore.errors import ModelError
from tierstore.model.checks import not_negative, positive, share, whole
from tierstore.model.job import Job, Rung
from tierstore.model.tail import slowest_at
from tierstore.model.workload import MOST_NODES

_DAY = 86_400.0
MOST_EVENTS = 250_000
"""Saves and failures of one simulation, some seconds."""
_SHAPES = 0.1, 100.0  # of a Weibull distribution; beyond, its mean is no number
_WAITING = 8  # a tier with so many saves waiting skips the next; see tierstore.ladder.lane


@dataclass(frozen=True, slots=True)
class Chance:
    """What is left to chance.

    Attributes:
        seed: of the random numbers; the same seed gives the same outcome.
        shape: of the Weibull distribution between failures of a node; 1 is exponential.
        stragglers: share of nodes that are slow in a save, on every tier.
        slowness: by which factor they are.

    Raises:
        ModelError: a number is outside of its domain.
    """

    seed: int = 0
    shape: float = 1.0
    stragglers: float = 0.0
    slowness: float = 1.0

    def __post_init__(self) -> None:
        shape = positive("shape of the failures", self.shape)
        if not _SHAPES[0] <= shape <= _SHAPES[1]:
            raise ModelError(f"shape of the failures is {shape:g}, not from 0.1 to 100")
        share("share of stragglers", self.stragglers)
        not_negative("slowness of stragglers beyond 1", self.slowness - 1)


@dataclass(slots=True)
class Simulated:
    """What happened; times in seconds.

    Attributes:
        seconds: simulated.
        cut: that is less than was asked for: more events would have taken too long.
        work: done and not lost.
        lost: work done and lost.
        stalled: of the trainer, waits for staging memory included.
        down: between a failure and the next work.
        saves: whose copy was taken.
        failures: of the job.
        from_start: failures after which no checkpoint was left.
        longest_stall: of one save.
        skipped: tier -> saves that it did not take because too many waited.
        durable_after: tier -> mean seconds from the begin of a save until the tier has it.
    """

    seconds: float
    work: float = 0.0
    lost: float = 0.0
    stalled: float = 0.0
    down: float = 0.0
    saves: int = 0
    failures: int = 0
    from_start: int = 0
    longest_stall: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)
    durable_after: dict[str, float] = field(default_factory=dict)
    cut: bool = False

    @property
    def goodput(self) -> float:
        """Share of time that is work in the end."""
        return self.work / self.seconds

    @property
    def lost_per_day(self) -> float:
        """Seconds of work that failures lose in a day."""
        return self.lost * _DAY / self.seconds

    @property
    def mean_stall(self) -> float:
        """Seconds that one save blocks the job."""
        return self.stalled / self.saves if self.saves else 0.0


def simulate(job: Job, days: float, chance: Chance | None = None) -> Simulated:
    """Run a job for some days, or until `MOST_EVENTS` saves and failures have happened.

    Raises:
        ModelError: a number is outside of its domain.
    """
    horizon = positive("days", days) * _DAY
    whole("number of nodes", job.nodes, most=MOST_NODES)
    return _Run(job, horizon, chance or Chance()).run()


class _Lane:
    """One tier over time: what it is busy with, and what it has."""

    def __init__(self, rung: Rung) -> None:
        self.rung = rung
        self.ends: deque[float] = deque()  # of saves that are not durable yet, in order
        self.saved: deque[float] = deque()  # the work that each of them holds
        self.newest: float | None = None  # the work of the newest durable save
        self.delays = self.count = 0.0

    def settle(self, now: float) -> None:
        """Note what is durable by `now`."""
        while self.ends and self.ends[0] <= now:
            self.ends.popleft()
            self.newest = self.saved.popleft()

    def take(self, begun: float, ready: float, seconds: float, work: float) -> float:
        """Queue a save and return when it will be durable."""
        end = max(ready, self.ends[-1] if self.ends else 0.0) + seconds
        self.ends.append(end)
        self.saved.append(work)
        self.delays += end - begun
        self.count += 1
        return end

    def drop(self) -> None:
        """Forget what is not durable: the trainer that sent it is gone."""
        self.ends.clear()
        self.saved.clear()


class _Run:
    def __init__(self, job: Job, horizon: float, chance: Chance) -> None:
        self.job, self.horizon, self.chance = job, horizon, chance
        self.random = np.random.default_rng(chance.seed)
        self.scale = job.node_mtbf / math.gamma(1 + 1 / chance.shape)
        self.failing = (self.scale * self.random.weibull(chance.shape, job.nodes)).tolist()
        heapify(self.failing)  # when each node fails next, the first one in front
        self.lanes = [_Lane(rung) for rung in job.rungs]
        self.images: deque[float] = deque(maxlen=job.images)  # when each is free again
        self.outcome = Simulated(horizon, skipped={rung.name: 0 for rung in job.rungs})
        self.number = 0
        self.now = self.work = 0.0

    def run(self) -> Simulated:
        while self.now < self.horizon and not self._enough:
            failure = self.failing[0]
            self._work_until(min(failure, self.horizon))
            if failure < self.horizon and not self._enough:
                self._fail(failure)
        if self.now < self.horizon:
            self.outcome.seconds, self.outcome.cut = self.now, True
        self.outcome.work = self.work
        for lane in self.lanes:
            if lane.count:
                self.outcome.durable_after[lane.rung.name] = lane.delays / lane.count
        return self.outcome

    @property
    def _enough(self) -> bool:
        return self.outcome.saves + self.outcome.failures >= MOST_EVENTS

    def _work_until(self, end: float) -> None:
        """Work and save until `end`."""
        out, job = self.outcome, self.job
        while not self._enough:
            if self.now + job.interval >= end:
                self.work += max(0.0, end - self.now)
                self.now = end
                return
            self.now += job.interval
            self.work += job.interval
            free = self.images[0] if len(self.images) == job.images else 0.0
            done = max(self.now, free) + job.stall
            if done > end:
                out.stalled += end - self.now
                self.now = end
                return
            out.stalled += done - self.now
            out.longest_stall = max(out.longest_stall, done - self.now)
            out.saves += 1
            self._send(self.now, done)
            self.now = done

    def _send(self, begun: float, ready: float) -> None:
        """Queue a save on every tier that takes it, each behind the one above."""
        first = True
        for lane in self.lanes:
            if self.number % lane.rung.every:
                continue
            lane.settle(ready)
            if len(lane.ends) >= _WAITING:
                self.outcome.skipped[lane.rung.name] += 1
                continue
            seconds = lane.rung.write_with(self._factor(lane.rung))
            ready = lane.take(begun, ready, seconds, self.work)
            if first:
                self.images.append(ready)
                first = False
        self.number += 1

    def _fail(self, at: float) -> None:
        """Lose what is not durable, and come back; further failures begin that anew."""
        out, before = self.outcome, self.work
        for lane in self.lanes:
            lane.settle(at)
            lane.drop()
        self.images.clear()
        while True:
            out.failures += 1
            self._replace(at)
            source = max(
                (lane for lane in self.lanes if lane.newest is not None),
                key=lambda lane: lane.newest or 0.0,  # the highest tier of those that are equal
                default=None,
            )
            self.work = (source.newest or 0.0) if source else 0.0
            reading = source.rung.read_with(self._factor(source.rung)) if source else 0.0
            back = at + self.job.restart + reading
            failure = self.failing[0]
            if source is None:
                out.from_start += 1
            if failure >= min(back, self.horizon) or self._enough:
                break
            at = failure
        out.lost += before - self.work
        out.down += min(back, self.horizon) - self.now
        self.now = back

    def _replace(self, at: float) -> None:
        """Put a new node in the place of the one that failed."""
        heapreplace(self.failing, at + self.scale * self.random.weibull(self.chance.shape))
        if self.random.random() < self.job.node_loss:
            for lane in self.lanes:
                if not lane.rung.shared:
                    lane.newest = None

    def _factor(self, rung: Rung) -> float:
        """Draw by how much the slowest node is slower than the median one."""
        nodes, slow = self.job.nodes, 0
        if self.chance.stragglers:
            slow = int(self.random.binomial(nodes, self.chance.stragglers))
        healthy = self._slowest(nodes - slow, rung.spread)
        return max(healthy, self.chance.slowness * self._slowest(slow, rung.spread))

    def _slowest(self, nodes: int, spread: float) -> float:
        """Draw the slowest of n lognormal factors at once: the quantile U^(1/n) of one."""
        if not nodes:
            return 0.0
        if not spread:
            return 1.0
        return slowest_at(1 - self.random.random(), nodes, spread)
