"""`tierstore ls`: which runs and steps there are, and on which tiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tierstore.cli.options import config_option, json_option, run_argument
from tierstore.cli.output import console, print_json, print_unseen, say, table
from tierstore.operations.advice import of_tier

if TYPE_CHECKING:
    from tierstore.operations.inspect import ListedStep, ListedSteps


@click.command
@run_argument("run", required=False, help="A run. Default: all runs.")
@config_option("config")
@click.option(
    "--all", "-a", "everything", is_flag=True, help="Include abandoned lines and deleted steps."
)
@json_option("as_json")
def run(run: str | None, config: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List checkpoints, newest first, and the tiers that hold them.

    A tier that cannot be listed is reported, the others are shown, and the exit code is 1.
    """
    from tierstore.operations import inspect

    found = inspect.steps(config, run)
    if found.unseen and not found.steps:  # "there is none" would be a guess
        print_unseen(found.unseen[:-1])
        raise of_tier(*found.unseen[-1])
    shown = [row for row in found.steps if everything or row.line in inspect.RESTORABLE]
    if as_json:
        print_json([row.to_json() for row in shown])
    else:
        _print(shown, found)
    if found.unseen:
        print_unseen(found.unseen)
        raise click.exceptions.Exit(1)


def _print(rows: Sequence[ListedStep], found: ListedSteps) -> None:
    if rows:
        numbers = ("step", "launch", "try")
        shown = table(["run", *numbers, "line", *found.tiers], right=numbers)
        absent = dict.fromkeys(found.tiers, "-") | {tier: "?" for tier, _ in found.unseen}
        nonces: dict[tuple[str, int], set[str]] = {}
        for row in rows:
            nonces.setdefault((row.run, row.launch), set()).add(row.nonce)
        for row in rows:
            marks = ["yes" if tier in row.tiers else absent[tier] for tier in found.tiers]
            several = len(nonces[row.run, row.launch] - {""}) > 1
            launch = f"{row.launch} ({row.nonce})" if several else f"{row.launch}"
            counted = (str(row.step), launch, str(row.number))
            shown.add_row(row.run, *counted, row.line, *marks)
        console().print(shown)
    else:
        say("no checkpoints", stderr=True)
    if hidden := len(found.steps) - len(rows):
        say(f"{hidden} abandoned or deleted not shown; --all shows them", stderr=True)
