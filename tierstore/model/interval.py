"""How often to save: Young's and Daly's intervals, and what a ladder is expected to lose.

- J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
- J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
  Generation Computer Systems 22(3), 2006, pages 303-312: the complete model of the total time, and
  the interval from its perturbation series.

Both are about saves that block the job until they are durable. `expected` is for a ladder that
drains behind the job: to first order, one failure a saved state at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from tierstore.model.checks import not_negative, positive
from tierstore.model.job import Job

_GRID = 400
_LONGEST = 10.0  # intervals of more than ten times the MTBF are not looked at
_SHORTEST = 1.0


def young(save: float, mtbf: float) -> float:
    """Return Young's interval sqrt(2 save mtbf): seconds of work between two saves.

    Args:
        save: seconds that one save blocks.
        mtbf: mean seconds between failures of the job.

    Raises:
        ModelError: a number is outside of its domain.
    """
    return math.sqrt(2 * not_negative("save time", save, "s") * positive("MTBF", mtbf, "s"))


def daly(save: float, mtbf: float) -> float:
    """Return Daly's higher-order interval: seconds of work between two saves.

    sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + (d / 2M) / 9) - d where d < 2 M, else M.

    Args:
        save: d, seconds that one save blocks.
        mtbf: M, mean seconds between failures of the job.

    Raises:
        ModelError: a number is outside of its domain.
    """
    first = young(save, mtbf)
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return first * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def efficiency(interval: float, save: float, mtbf: float, restart: float = 0.0) -> float:
    """Return the share of time that is work in the end, by Daly's complete model.

    Failures are exponential and may strike a save or a restart too; the total time for work T is
    M exp(R/M) (exp((interval + save)/M) - 1) T/interval.

    Raises:
        ModelError: a number is outside of its domain.
    """
    work = positive("interval", interval, "s")
    mean = positive("MTBF", mtbf, "s")
    exponent = (work + not_negative("save time", save, "s")) / mean
    late = not_negative("restart", restart, "s") / mean
    if exponent + late > 700:  # exp would overflow, and nothing is ever finished
        return 0.0
    return work / (mean * math.exp(late) * math.expm1(exponent))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a job is expected to do with its time, in the long run.

    Attributes:
        goodput: share of time that is work in the end, from 0 to 1.
        stall: seconds that one save blocks the job.
        lost: seconds of work that a failure loses.
        lost_if_node: the same for a failure that loses a node; infinite if no tier is shared.
        down: seconds from a failure until work goes on.
        lost_per_day: seconds of work that failures lose in a day.
        failures_per_day: how many there are.
        behind: the tiers that cannot keep up with their saves.
    """

    goodput: float
    stall: float
    lost: float
    lost_if_node: float
    down: float
    lost_per_day: float
    failures_per_day: float
    behind: tuple[str, ...]


def expected(job: Job) -> Expected:
    """Return the closed form for a ladder, to first order.

    A save of period P (work and stall) is durable on a tier w after its stall began and its tier
    takes every k-th, so a failure finds the newest one k P/2 + w old on average. What is lost is
    the work in that time. Of M between failures, what is not spent to come back is worked in the
    share interval/P. Good while what is lost is short against M.
    """
    tails = {r.name: job.tail(r) for r in job.rungs}
    writes = {r.name: r.write_with(tails[r.name]) for r in job.rungs}
    durable = durable_after(job.stall, writes)
    stall = _stall(job, writes[job.rungs[0].name])
    period = job.interval + stall
    working = job.interval / period
    ages = {r.name: r.every * period / 2 + durable[r.name] for r in job.rungs}
    back = {r.name: job.restart + r.read_with(tails[r.name]) for r in job.rungs}
    kept = min(job.rungs, key=lambda r: ages[r.name])
    shared = min((r for r in job.rungs if r.shared), key=lambda r: ages[r.name], default=None)
    lost = ages[kept.name] * working
    lost_if_node = ages[shared.name] * working if shared else math.inf
    down_if_node = back[shared.name] if shared else job.restart
    q = job.node_loss
    mean_lost = (1 - q) * lost + (q * lost_if_node if q else 0.0)
    down = (1 - q) * back[kept.name] + q * down_if_node
    goodput = ((job.mtbf - down) * working - mean_lost) / job.mtbf
    daily = 86_400 / job.mtbf
    return Expected(
        max(0.0, goodput),
        stall,
        lost,
        lost_if_node,
        down,
        mean_lost * daily,
        daily,
        tuple(r.name for r in job.rungs if writes[r.name] > r.every * period),
    )


def best_interval(job: Job) -> float:
    """Return the interval of the highest expected goodput at which every tier keeps up.

    Where none keeps up at any interval looked at, tiers that are behind are ignored.
    """
    longest = max(_LONGEST * job.mtbf, 2 * _SHORTEST)
    step = math.log(longest / _SHORTEST) / (_GRID - 1)
    grid = [_SHORTEST * math.exp(step * k) for k in range(_GRID)]
    outcomes = [(each, expected(job.at(each))) for each in grid]
    keeping = [(each, found) for each, found in outcomes if not found.behind]
    return max(keeping or outcomes, key=lambda pair: pair[1].goodput)[0]


def durable_after(staged: float, writes: Mapping[str, float]) -> dict[str, float]:
    """Return seconds from the begin of a save until each tier has it: one tier after another.

    Args:
        staged: seconds until the copy is taken.
        writes: tier -> seconds that it takes, in the order of the ladder.
    """
    return dict(zip(writes, list(accumulate(writes.values(), initial=staged))[1:], strict=True))


def _stall(job: Job, write: float) -> float:
    """The copy, and the wait for an image that the first tier has not taken yet."""
    waits = write - job.images * job.interval
    return job.stall + max(0.0, waits) / job.images
