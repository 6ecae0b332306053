"""`tierstore plan`: which tiers, how often and how many to keep, to meet targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.amounts import assignments, duration, number, seconds
from tierstore.cli.assumed import ModelArguments
from tierstore.cli.options import option, takes
from tierstore.cli.output import console, print_json, size, table
from tierstore.cli.predict import show

if TYPE_CHECKING:
    from tierstore.operations.predict import LadderPlan, Setting

TARGETS = {
    "goodput": number,
    "lost": seconds,
    "cost": number,
    "price.": number,
    "write_price.": number,
}
"""What may be asked for; "price." and "write_price." are followed by a tier's name."""


@dataclass(frozen=True, kw_only=True)
class PlanArguments(ModelArguments):
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
@takes(PlanArguments)
def run(given: PlanArguments) -> None:
    """Choose tiers, every and keep: the cheapest ladder that meets all targets.

    Targets are goodput=0.97, lost=30m (of work, a day), cost=500 (a month), price.TIER=0.02 (a GB
    and month) and write_price.TIER=0.005 (a thousand requests).
    """
    from tierstore.operations.predict import Targets, of_tiers, plan

    setting = given.read()
    asked = assignments(given.target, TARGETS, what="target")
    targets = Targets(
        asked.get("goodput"),
        asked.get("lost"),
        asked.get("cost"),
        of_tiers(asked, "price"),
        of_tiers(asked, "write_price"),
    )
    chosen = plan(setting, targets)
    print_json(chosen.to_json()) if given.as_json else _show(chosen, setting)


def _summary(chosen: LadderPlan) -> str:
    """Say what it costs; nothing, where nobody said what anything costs."""
    found, free = chosen.plan, chosen.without_price
    parts = [f"save every {duration(found.forecast.job.interval)}"]
    if len(free) < len(found.keep):
        without = f", without {', '.join(free)}" if free else ""
        parts.append(f"{found.cost:.2f} a month{without}")
    elif not chosen.priced:
        parts.append("no prices were given (--target price.TIER=...)")
    else:
        parts.append(f"no price was given of {', '.join(free)}")
    return "; ".join([*parts, f"the best of {chosen.tried} ladders"])


def _show(planned: LadderPlan, setting: Setting) -> None:
    out, chosen = console(), planned.plan
    out.print(_summary(planned), soft_wrap=True)
    shown = table(["tier", "every", "keep", "space"], right=("every", "keep", "space"))
    for tier in chosen.forecast.tiers:
        name = tier.rung.name
        space = size(chosen.space[name])
        shown.add_row(name, str(tier.rung.every), str(chosen.keep[name]), space)
    out.print(shown)
    out.print()
    for tier in chosen.forecast.tiers:
        name = tier.rung.name
        out.print(
            f'[[tier]]\nname = "{name}"\nurl = "{setting.measured.tier(name).url}"', soft_wrap=True
        )
        if tier.rung.every > 1:
            out.print(f"every = {tier.rung.every}")
    out.print()
    show(planned.prediction)
