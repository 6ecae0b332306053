"""Which tiers, how often, how many to keep: the cheapest ladder that meets the targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement

from tierstore.errors import ModelError
from tierstore.model.checks import not_negative, share
from tierstore.model.points import Measured
from tierstore.model.predict import Forecast, TierForecast, forecast_tier, of_tiers, with_every
from tierstore.model.workload import Cluster, Workload

EVERY = (1, 2, 5, 10, 20, 50, 100)
"""What is tried for 'every'; down the ladder it never falls."""
_MOST_TIERS = 6  # make 3,653 ladders, each of which takes some milliseconds
_MONTH = 30 * 86_400.0
_GB = 1e9
_EQUAL = 1e-3  # a difference in goodput that is not worth a costlier or longer ladder


@dataclass(frozen=True, slots=True)
class Targets:
    """What a ladder has to reach; None for what is not asked for.

    Attributes:
        goodput: least share of time that is work in the end.
        lost: most seconds of work that failures lose in a day.
        cost: most money for storage and requests in a month.
        price: tier -> money for a GB (1e9 bytes) kept for a month; 0 if it is not named.
        write_price: tier -> money for a thousand writing requests.

    Raises:
        ModelError: a number is outside of its domain.
    """

    goodput: float | None = None
    lost: float | None = None
    cost: float | None = None
    price: Mapping[str, float] = field(default_factory=dict)
    write_price: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.goodput is not None:
            share("target of goodput", self.goodput)
        if self.lost is not None:
            not_negative("target of lost work", self.lost, "s a day")
        if self.cost is not None:
            not_negative("target of cost", self.cost)
        for tier, value in (*self.price.items(), *self.write_price.items()):
            not_negative(f"price of tier {tier}", value)


@dataclass(frozen=True, slots=True)
class Plan:
    """A ladder.

    Attributes:
        forecast: what it does.
        keep: tier -> saves to keep there: the newest that is whole, and those being written.
        space: tier -> bytes that these take, over all nodes.
        cost: money a month, of the tiers that have a price.
    """

    forecast: Forecast
    keep: Mapping[str, int]
    space: Mapping[str, float]
    cost: float


def plan(
    measured: Measured, workload: Workload, cluster: Cluster, targets: Targets
) -> tuple[Plan, int]:
    """Return the best ladder and how many were looked at.

    Of those that meet the targets and keep up: the cheapest; of equally cheap ones the one with the
    highest goodput, and of those within 0.1 % the shortest.

    Raises:
        ModelError: none meets the targets; the message says how near the nearest comes. Or there
            are too many tiers.
        ConfigError: a tier was not measured.
    """
    for name in (*targets.price, *targets.write_price, *cluster.ceilings, *cluster.shared):
        measured.tier(name)
    if len(measured.tiers) > _MOST_TIERS:
        text = f"{len(measured.tiers)} tiers make too many ladders to try them all"
        raise ModelError(text, hint=f"measure those that may be chosen, {_MOST_TIERS} at most")
    tiers = [forecast_tier(measured, tier, workload, cluster) for tier in measured.tiers]
    parts = {tier.name: tier.part_size for tier in measured.tiers}
    plans = [
        _price(of_tiers(measured, workload, cluster, ladder), parts, targets)
        for ladder in _ladders(tiers)
    ]
    keeping = [each for each in plans if not each.forecast.expected.behind]
    good = [each for each in keeping if _meets(each, targets)]
    if not good:
        raise ModelError("no ladder meets the targets", hint=_nearest(keeping or plans, targets))
    cheapest = min(each.cost for each in good)
    cheap = [each for each in good if each.cost <= cheapest * (1 + _EQUAL)]
    most = max(each.forecast.expected.goodput for each in cheap)
    equal = [each for each in cheap if each.forecast.expected.goodput >= most - _EQUAL]
    best = min(equal, key=lambda each: (len(each.keep), -each.forecast.expected.goodput))
    return best, len(plans)


def _ladders(tiers: Sequence[TierForecast]) -> Iterator[list[TierForecast]]:
    for length in range(1, len(tiers) + 1):
        for chosen in combinations(tiers, length):
            for every in combinations_with_replacement(EVERY, length - 1):
                steps = zip(chosen, (1, *every), strict=True)
                yield [with_every(tier, n) for tier, n in steps]


def _price(forecast: Forecast, parts: Mapping[str, int], targets: Targets) -> Plan:
    job, total = forecast.job, forecast.workload.nbytes
    period = job.interval + forecast.expected.stall
    keep, space, cost = {}, {}, 0.0
    for tier in forecast.tiers:
        name, between = tier.rung.name, period * tier.rung.every
        keep[name] = 1 + math.ceil(tier.write / between)
        space[name] = keep[name] * total
        writes = _MONTH / between * total / parts[name]
        cost += space[name] / _GB * targets.price.get(name, 0.0)
        cost += writes / 1000 * targets.write_price.get(name, 0.0)
    return Plan(forecast, keep, space, cost)


def _meets(each: Plan, targets: Targets) -> bool:
    found = each.forecast.expected
    return (
        found.goodput >= (targets.goodput or 0.0)
        and found.goodput > 0
        and (targets.lost is None or found.lost_per_day <= targets.lost)
        and (targets.cost is None or each.cost <= targets.cost)
    )


def _nearest(plans: Sequence[Plan], targets: Targets) -> str:
    """Say the best that each target alone could have."""
    best = []
    if targets.goodput is not None:
        most = max(each.forecast.expected.goodput for each in plans)
        best.append(f"goodput at most {most:.2%}")
    if targets.lost is not None:
        least = min(each.forecast.expected.lost_per_day for each in plans)
        best.append(f"work lost in a day at least {least / 60:.1f} min")
    if targets.cost is not None:
        best.append(f"cost at least {min(each.cost for each in plans):.2f} a month")
    return f"each alone: {', '.join(best)}" if best else "every one loses all work to failures"
