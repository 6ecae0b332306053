"""`tierstore plan`: which tiers, how often and how many to keep, to meet targets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from tierstore.cli.amounts import assignments, duration, number, of_tiers, seconds
from tierstore.cli.assumed import Question
from tierstore.cli.options import option, takes
from tierstore.cli.output import console, print_json, size, table
from tierstore.cli.predict import show, to_json
from tierstore.errors import ConfigError
from tierstore.waiting import on

if TYPE_CHECKING:
    from tierstore.model.plan import Plan
    from tierstore.model.points import Measured
    from tierstore.model.simulate import Outcome

TARGETS = {
    "goodput": number,
    "lost": seconds,
    "cost": number,
    "price.": number,
    "write_price.": number,
}
"""What may be asked for; "price." and "write_price." are followed by a tier's name."""


@dataclass(frozen=True, kw_only=True)
class Options(Question):
    """What the command is told."""

    target: Annotated[
        tuple[str, ...],
        option(
            "--target",
            "-t",
            multiple=True,
            metavar="KEY=VALUE",
            help="What to reach; repeatable.",
        ),
    ] = ()


@click.command
@takes(Options)
def run(options: Options) -> None:
    """Choose tiers, every and keep: the cheapest ladder that meets all targets.

    Targets are goodput=0.97, lost=30m (of work, a day), cost=500 (a month), price.TIER=0.02 (a GB
    and month) and write_price.TIER=0.005 (a thousand requests).
    """
    from tierstore.model.plan import Targets, plan

    setting = options.read()
    for key in setting.assumed:
        if key == "interval" or key.startswith("every."):
            raise ConfigError(
                f"assumption {key}: that is what plan chooses",
                hint="`tierstore predict` tells what a given one does",
            )
    asked = assignments(options.target, TARGETS, what="target")
    targets = Targets(
        asked.get("goodput"),
        asked.get("lost"),
        asked.get("cost"),
        of_tiers(asked, "price"),
        of_tiers(asked, "write_price"),
    )
    priced = {*targets.price, *targets.write_price}
    if targets.cost is not None and not priced:
        raise ConfigError("target cost: no tier has a price", hint="say --target price.TIER=0.02")
    with on("the plan", "every ladder of these tiers"):
        chosen, tried = plan(setting.measured, setting.workload, setting.cluster, targets)
    job = chosen.forecast.job
    outcome = setting.simulate(job, job.interval)
    if options.as_json:
        print_json(_to_json(chosen, outcome, tried, priced))
    else:
        _show(setting.measured, chosen, outcome, _summary(chosen, tried, priced))


def _summary(chosen: Plan, tried: int, priced: Collection[str]) -> str:
    """Say what it costs; nothing, where nobody said what anything costs."""
    parts = [f"save every {duration(chosen.forecast.job.interval)}"]
    free = [name for name in chosen.keep if name not in priced]
    if len(free) < len(chosen.keep):
        without = f", without {', '.join(free)}" if free else ""
        parts.append(f"{chosen.cost:.2f} a month{without}")
    elif not priced:
        parts.append("no prices were given (--target price.TIER=...)")
    else:
        parts.append(f"no price was given of {', '.join(free)}")
    return "; ".join([*parts, f"the best of {tried} ladders"])


def _to_json(chosen: Plan, outcome: Outcome, tried: int, priced: Collection[str]) -> dict[str, Any]:
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
        "cost": chosen.cost if any(name in priced for name in chosen.keep) else None,
        "without_price": [name for name in chosen.keep if name not in priced],
        "ladders_tried": tried,
        "prediction": to_json(chosen.forecast, outcome),
    }


def _show(measured: Measured, chosen: Plan, outcome: Outcome, summary: str) -> None:
    out = console()
    out.print(summary, soft_wrap=True)
    shown = table(["tier", "every", "keep", "space"], right=("every", "keep", "space"))
    for tier in chosen.forecast.tiers:
        name = tier.rung.name
        space = size(chosen.space[name])
        shown.add_row(name, str(tier.rung.every), str(chosen.keep[name]), space)
    out.print(shown)
    out.print()
    for tier in chosen.forecast.tiers:
        name = tier.rung.name
        out.print(f'[[tier]]\nname = "{name}"\nurl = "{measured.tier(name).url}"', soft_wrap=True)
        if tier.rung.every > 1:
            out.print(f"every = {tier.rung.every}")
    out.print()
    show(chosen.forecast, outcome)
