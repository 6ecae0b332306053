"""What saves and failures cost a job on a cluster, and which ladder serves it best."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierstore import registry
from tierstore.errors import ConfigError
from tierstore.model import plan as ladders
from tierstore.model import predict as formulas
from tierstore.model.checks import positive, whole
from tierstore.model.job import Job
from tierstore.model.plan import Plan, Targets
from tierstore.model.points import Measured, load_points
from tierstore.model.predict import Forecast
from tierstore.model.simulate import Chance, Simulated, simulate
from tierstore.model.workload import Cluster, Workload
from tierstore.operations.tiers import configured
from tierstore.waiting import on

if TYPE_CHECKING:
    from tierstore.operations.tiers import Ladder

__all__ = [
    "ASSUMPTIONS",
    "Forecast",
    "LadderPlan",
    "Prediction",
    "Setting",
    "Simulated",
    "Targets",
    "of_tiers",
    "plan",
    "predict",
    "setting",
]

ASSUMPTIONS = (
    *("restart", "node_loss", "network", "copy", "cores", "spread", "images", "interval"),
    *("days", "seed", "stragglers", "slowness", "shape", "ceiling.", "shared.", "every."),
)
"""What may be assumed, in seconds, bytes, or bytes a second; see docs/model.md. A name that ends in
"." is followed by a tier's."""
_OF_CLUSTER = ("restart", "node_loss", "network", "copy", "spread", "images")
_MOST_SAVES = 100_000
_DAYS = 30.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A job as the model takes it; see `setting`.

    Attributes:
        assumed: numbers that nobody measured.
        measured: the points, as of a machine with as many cores as the nodes have.
        workload: what is saved.
        cluster: where.
    """

    assumed: Mapping[str, float]
    measured: Measured
    workload: Workload
    cluster: Cluster

    def simulate(self, job: Job, period: float) -> Simulated:
        """Simulate a job for as long as was assumed; else a month, or fewer days of many saves.

        Args:
            job: what happens.
            period: seconds from one save to the next.

        Raises:
            ModelError: a number is outside of its domain.
        """
        days = self.assumed.get("days", min(_DAYS, _MOST_SAVES * period / 86_400))
        with on("the simulation", f"{days:.3g} days, save by save"):
            return simulate(job, days, _chance(self.assumed))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a job will do: `forecast` by formulas, `outcome` by simulating it."""

    forecast: Forecast
    outcome: Simulated

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; an infinite time is null."""
        found, outcome = self.forecast, self.outcome
        document = {
            "workload": asdict(found.workload),
            "rank_bytes": found.rank_bytes,
            "tiers": [asdict(tier) for tier in found.tiers],
            "rungs": dict(found.rungs),
            "interval": found.job.interval,
            "suggested_interval": found.suggested,
            "young": found.young,
            "daly": found.daly,
            "expected": asdict(found.expected),
            "simulated": {
                **asdict(outcome),
                "goodput": outcome.goodput,
                "mean_stall": outcome.mean_stall,
                "lost_per_day": outcome.lost_per_day,
            },
        }
        return {key: _finite(value) for key, value in document.items()}


@dataclass(frozen=True, slots=True)
class LadderPlan:
    """The ladder that was chosen.

    Attributes:
        plan: its tiers, what to keep on each, and its cost.
        outcome: of a simulation of it.
        tried: how many ladders were looked at.
        priced: the tiers whose price was given.
    """

    plan: Plan
    outcome: Simulated
    tried: int
    priced: frozenset[str] = field(default_factory=frozenset)

    @property
    def prediction(self) -> Prediction:
        """What a job on it will do."""
        return Prediction(self.plan.forecast, self.outcome)

    @property
    def without_price(self) -> list[str]:
        """Its tiers whose price was not given."""
        return [name for name in self.plan.keep if name not in self.priced]

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        chosen = self.plan
        return {
            "tiers": [
                {
                    "name": tier.rung.name,
                    "every": tier.rung.every,
                    "keep": chosen.keep[tier.rung.name],
                    "bytes": chosen.space[tier.rung.name],
                }
                for tier in chosen.forecast.tiers
            ],
            "cost": chosen.cost if len(self.without_price) < len(chosen.keep) else None,
            "without_price": self.without_price,
            "ladders_tried": self.tried,
            "prediction": self.prediction.to_json(),
        }


def setting(
    model: str | float,
    nodes: int,
    mtbf: float,
    points: Measured | str | os.PathLike[str],
    *,
    gpus: int = 8,
    assume: Mapping[str, float] | None = None,
) -> Setting:
    """Return a job as the model takes it.

    Args:
        model: what is saved: a number of parameters, or an MLPerf shape such as "70b".
        nodes: machines of the job.
        mtbf: mean time between failures of one machine, in seconds.
        points: what `bench` measured, or the file that has it.
        gpus: ranks on each machine.
        assume: numbers that nobody measured: see `ASSUMPTIONS`.

    Raises:
        ConfigError: an argument is wrong, or there is no file of points.
        FormatError: that file is none.
        ModelError: a number is outside of its domain.
    """
    assumed = dict(assume or {})
    for key in assumed:
        known = key.partition(".")[0] + "." if "." in key else key
        if known not in ASSUMPTIONS or key.endswith("."):
            names = [f"{name}TIER" if name.endswith(".") else name for name in ASSUMPTIONS]
            raise ConfigError(f"assumption {key!r} is unknown", hint=registry.nearest(key, names))
    measured = points if isinstance(points, Measured) else load_points(Path(points))
    measured = _with_cores(measured, assumed)
    for kind in ("ceiling", "shared", "every"):
        for name in of_tiers(assumed, kind):
            measured.tier(name)
    workload = Workload.parse(str(model))
    return Setting(assumed, measured, workload, _cluster(assumed, workload, nodes, gpus, mtbf))


def predict(setting: Setting, ladder: Ladder = None) -> Prediction:
    """Predict a job: time on each tier, stall, work lost, goodput, a good interval.

    Args:
        setting: the job.
        ladder: its tiers, by their names; None for all that were measured.

    Raises:
        ConfigError: the ladder is wrong, or has a tier that was not measured.
        ModelError: points are missing, or a number is outside of its domain.
    """
    assumed = setting.assumed
    tiers = configured(ladder) if ladder else setting.measured.tiers
    every = {tier.name: tier.every for tier in tiers}
    of = of_tiers(assumed, "every")
    every |= {name: whole(f"every.{name}", n) for name, n in of.items()}
    found = formulas.predict(
        setting.measured,
        setting.workload,
        setting.cluster,
        every=every,
        interval=assumed.get("interval"),
    )
    outcome = setting.simulate(found.job, found.job.interval + found.expected.stall)
    return Prediction(found, outcome)


def plan(setting: Setting, targets: Targets) -> LadderPlan:
    """Choose tiers, every and keep: the cheapest ladder that meets all targets.

    Args:
        setting: the job.
        targets: what to reach.

    Raises:
        ConfigError: what is to be chosen is assumed, or a cost is asked for without any price.
        ModelError: no ladder meets them, and how near the nearest comes.
    """
    for key in setting.assumed:
        if key == "interval" or key.startswith("every."):
            raise ConfigError(
                f"assumption {key}: that is what plan chooses",
                hint="`tierstore predict` tells what a given one does",
            )
    priced = frozenset({*targets.price, *targets.write_price})
    if targets.cost is not None and not priced:
        raise ConfigError("target cost: no tier has a price", hint="say --target price.TIER=0.02")
    with on("the plan", "every ladder of these tiers"):
        chosen, tried = ladders.plan(setting.measured, setting.workload, setting.cluster, targets)
    job = chosen.forecast.job
    return LadderPlan(chosen, setting.simulate(job, job.interval), tried, priced)


def of_tiers(given: Mapping[str, float], kind: str) -> dict[str, float]:
    """Return what was given for each tier: "ceiling.s3" of kind "ceiling" is under "s3"."""
    return {
        key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{kind}.")
    }


def _cluster(
    assumed: Mapping[str, float], workload: Workload, nodes: int, gpus: int, mtbf: float
) -> Cluster:
    given: dict[str, Any] = {key: assumed[key] for key in _OF_CLUSTER if key in assumed}
    cluster = Cluster(
        nodes,
        gpus,
        mtbf,
        **given,
        ceilings=of_tiers(assumed, "ceiling"),
        shared=frozenset(tier for tier, yes in of_tiers(assumed, "shared").items() if yes),
    )
    if workload.ranks not in (None, nodes * gpus):
        raise ConfigError(
            f"{workload.name} is saved by {workload.ranks} ranks, not by {nodes} x {gpus}",
            hint="choose --nodes and --gpus to match, or give --params for any cluster",
        )
    return cluster


def _with_cores(measured: Measured, assumed: Mapping[str, float]) -> Measured:
    if "cores" not in assumed:
        return measured
    cores = positive("number of cores", assumed["cores"])
    return replace(measured, machine={**measured.machine, "cores": cores})


def _chance(assumed: Mapping[str, float]) -> Chance:
    given = {key: assumed[key] for key in ("shape", "stragglers", "slowness") if key in assumed}
    return Chance(whole("seed", assumed.get("seed", 0), least=0, most=2**53), **given)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
