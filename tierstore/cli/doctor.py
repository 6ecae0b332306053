"""`tierstore doctor`: can every tier do what a save needs of it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tierstore.cli.options import config_option, json_option
from tierstore.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierstore.operations.doctor import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command
@config_option("config")
@json_option("as_json")
def run(config: tuple[str, ...], as_json: bool) -> None:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk; advise.

    After the tiers comes the memory of this machine in which trainers stage.

    Writes and deletes a few small objects below doctor/ on every tier. Exits with 1 if a check
    failed.
    """
    from tierstore.operations.doctor import examine

    found = examine(config) if as_json else examine(config, hears=_show_tier)
    if as_json:
        print_json(found.to_json())
    if not found.good:
        raise click.exceptions.Exit(1)


def _show_tier(name: str, url: str) -> Callable[[Check], None]:
    say(name, bold=True, nl=False)
    say(f"  {url}")
    return _show


def _show(check: Check) -> None:
    failed = check.outcome == "failed"
    say(f"  {check.outcome:<8}", fg=_COLOURS[check.outcome], bold=failed, nl=False)
    say(f"{check.name}: {check.detail}")
    if check.advice:
        say(f"          -> {check.advice}")
