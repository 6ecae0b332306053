"""What `tierstore predict` and `tierstore plan` share: the cluster, and numbers nobody measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tierstore.cli.amounts import assignments, nbytes, number, of_tiers, seconds
from tierstore.cli.options import PATH, json_option, option
from tierstore.errors import ConfigError
from tierstore.waiting import on

if TYPE_CHECKING:
    from tierstore.model.job import Job
    from tierstore.model.points import Measured
    from tierstore.model.simulate import Chance, Outcome
    from tierstore.model.workload import Cluster, Workload

_MOST_SAVES = 100_000
_DAYS = 30.0


def _truth(text: str) -> float:
    values = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
    if text.lower() not in values:
        raise ConfigError(f"{text!r} is neither yes nor no")
    return values[text.lower()]


KNOWN = {
    "restart": seconds,
    "node_loss": number,
    "network": nbytes,
    "copy": nbytes,
    "cores": number,
    "spread": number,
    "images": number,
    "interval": seconds,
    "days": number,
    "seed": number,
    "stragglers": number,
    "slowness": number,
    "shape": number,
    "ceiling.": nbytes,
    "shared.": _truth,
    "every.": number,
}
"""What may be assumed; a name that ends in "." is followed by a tier's."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is saved, by which machines, and what is known of them."""

    model: Annotated[
        str,
        option(
            "--params",
            "--shape",
            metavar="N|SHAPE",
            help="What is saved: a number of parameters (8e9) or an MLPerf shape (8b, 70b, 405b, "
            "1t).",
        ),
    ]
    nodes: Annotated[int, option("--nodes", type=int, help="Machines of the job.")]
    mtbf: Annotated[
        str,
        option("--mtbf", help="Mean time between failures of one machine, such as 150d."),
    ]
    points: Annotated[
        Path, option("--points", "-p", type=PATH, help="The file that `tierstore bench` wrote.")
    ]
    gpus: Annotated[
        int, option("--gpus", type=int, show_default=True, help="Ranks on each machine.")
    ] = 8
    assume: Annotated[
        tuple[str, ...],
        option(
            "--assume",
            "-a",
            multiple=True,
            metavar="KEY=VALUE",
            help="A number that nobody measured; repeatable.",
        ),
    ] = ()
    as_json: Annotated[bool, json_option] = False

    def read(self) -> Setting:
        """Return it as the model takes it.

        Raises:
            ConfigError: an option or an assumption is wrong, or there is no file of points.
            FormatError: that file is none.
            ModelError: a number is outside of its domain.
        """
        from tierstore.model.points import load_points
        from tierstore.model.workload import Workload

        assumed = assignments(self.assume, KNOWN, what="assumption")
        measured = _with_cores(load_points(self.points), assumed)
        for kind in ("ceiling", "shared", "every"):
            for name in of_tiers(assumed, kind):
                measured.tier(name)
        workload = Workload.parse(self.model)
        cluster = _cluster(assumed, workload, self.nodes, self.gpus, self.mtbf)
        return Setting(assumed, measured, workload, cluster)


@dataclass(frozen=True, slots=True)
class Setting:
    """A question as the model takes it.

    Attributes:
        assumed: numbers that nobody measured.
        measured: the points, as of a machine with as many cores as the nodes have.
        workload: what is saved.
        cluster: where.
    """

    assumed: dict[str, float]
    measured: Measured
    workload: Workload
    cluster: Cluster

    def simulate(self, job: Job, period: float) -> Outcome:
        """Simulate a job for as long as was assumed; else a month, or fewer days of many saves.

        Args:
            job: what happens.
            period: seconds from one save to the next.

        Raises:
            ModelError: a number is outside of its domain.
        """
        from tierstore.model.simulate import simulate

        days = self.assumed.get("days", min(_DAYS, _MOST_SAVES * period / 86_400))
        with on("the simulation", f"{days:.3g} days, save by save"):
            return simulate(job, days, _chance(self.assumed))


def _cluster(
    assumed: dict[str, float], workload: Workload, nodes: int, gpus: int, mtbf: str
) -> Cluster:
    from tierstore.model.workload import Cluster

    named = ("restart", "node_loss", "network", "copy", "spread", "images")
    given: dict[str, Any] = {key: assumed[key] for key in named if key in assumed}
    cluster = Cluster(
        nodes,
        gpus,
        seconds(mtbf),
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


def _with_cores(measured: Measured, assumed: dict[str, float]) -> Measured:
    from tierstore.model.checks import positive

    if "cores" not in assumed:
        return measured
    cores = positive("number of cores", assumed["cores"])
    return replace(measured, machine={**measured.machine, "cores": cores})


def _chance(assumed: dict[str, float]) -> Chance:
    from tierstore.model.checks import whole
    from tierstore.model.simulate import Chance

    given = {key: assumed[key] for key in ("shape", "stragglers", "slowness") if key in assumed}
    return Chance(whole("seed", assumed.get("seed", 0), least=0, most=2**53), **given)
