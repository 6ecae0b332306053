"""`tierstore predict`: what saves and failures cost a job on a cluster, from measured points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.amounts import duration
from tierstore.cli.assumed import ModelArguments
from tierstore.cli.options import PLACE, option, takes
from tierstore.cli.output import console, count, print_json, size, table

if TYPE_CHECKING:
    from tierstore.operations.predict import Forecast, Prediction


@dataclass(frozen=True, kw_only=True)
class PredictArguments(ModelArguments):
    """What the command is told."""

    config: Annotated[
        tuple[str, ...],
        option(
            "--config",
            "-c",
            multiple=True,
            type=PLACE,
            metavar="FILE",
            help="Take the ladder from here, by the names of its tiers; else that of the points.",
        ),
    ] = ()


@click.command
@takes(PredictArguments)
def run(given: PredictArguments) -> None:
    """Predict for a cluster: time on each tier, stall, lost work, goodput and a good interval.

    Numbers that nobody measured are given as --assume KEY=VALUE; docs/model.md lists them.
    """
    from tierstore.operations.predict import predict

    found = predict(given.read(), given.config)
    print_json(found.to_json()) if given.as_json else show(found)


def show(prediction: Prediction) -> None:
    """Print a prediction for people."""
    found, outcome = prediction.forecast, prediction.outcome
    out, job, hope = console(), found.job, found.expected
    out.print(
        f"{found.workload.name}: {size(found.workload.nbytes)} a save, "
        f"{size(found.rank_bytes)} a rank; a failure every {duration(job.mtbf)}",
        soft_wrap=True,
    )
    _show_tiers(found)
    rows = table(["", "expected", "simulated"], right=("expected", "simulated"))
    rows.add_row("stall of a save", duration(hope.stall), duration(outcome.mean_stall))
    each = outcome.lost / outcome.failures if outcome.failures else 0.0
    mean = hope.lost_per_day / hope.failures_per_day
    rows.add_row("work lost by a failure", duration(mean), duration(each))
    rows.add_row("  if it loses a node", duration(hope.lost_if_node), "")
    rows.add_row("work lost a day", duration(hope.lost_per_day), duration(outcome.lost_per_day))
    rows.add_row("goodput", f"{hope.goodput:.2%}", f"{outcome.goodput:.2%}")
    out.print()
    out.print(rows)
    if outcome.cut:
        out.print(
            f"simulated {duration(outcome.seconds)} only: "
            f"{count(outcome.failures, 'failure')} and {count(outcome.saves, 'save')}",
            style="yellow",
            soft_wrap=True,
        )
    out.print()
    out.print(
        f"interval {duration(job.interval)}, suggested {duration(found.suggested)} "
        f"(Young {duration(found.young)}, Daly {duration(found.daly)}: for the stall alone)",
        soft_wrap=True,
    )
    if math.isinf(hope.lost_if_node) and job.node_loss:
        out.print(
            "no tier outlives a lost node: add a remote one, or say --assume shared.TIER=yes",
            style="yellow",
            soft_wrap=True,
        )
    if hope.behind:
        out.print(f"cannot keep up: {', '.join(hope.behind)}", style="yellow", soft_wrap=True)
    for tier in found.tiers:
        for note in tier.notes:
            out.print(f"{tier.rung.name}: {note}", style="dim", soft_wrap=True)


def _show_tiers(found: Forecast) -> None:
    numbers = ("every", "save", "durable after", "restore", "GB/s a node")
    shown = table(["tier", *numbers, "limit", "stages"], right=numbers)
    after = dict(found.rungs)
    shown.add_row("(staged)", "", "", duration(after["staged"]), "", "", "memory", "")
    for tier in found.tiers:
        stages = ", ".join(f"{name} {duration(value)}" for name, value in tier.stages.items())
        times = map(duration, (tier.write, after[tier.rung.name], tier.read))
        row = (str(tier.rung.every), *times, f"{tier.rate / 1e9:.2f}", tier.limit, stages)
        shown.add_row(tier.rung.name, *row)
    console().print(shown)
