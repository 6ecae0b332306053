"""`tierstore doctor`: can every tier do what a save needs of it?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tierstore.cli.options import config_option, json_option
from tierstore.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierstore.backend import Check
    from tierstore.config import TierConfig

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command
@config_option("config")
@json_option("as_json")
def run(config: tuple[str, ...], as_json: bool) -> None:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk; advise.

    Writes and deletes a few small objects below doctor/ on every tier. Exits with 1 if a check
    failed.
    """
    from tierstore.config import load_config

    show: Callable[[Check], None] = _silent if as_json else _show
    found: dict[str, tuple[str, list[Check]]] = {}
    for tier in load_config(*config).tiers:
        if not as_json:
            say(tier.name, bold=True, nl=False)
            say(f"  {tier.url}")
        found[tier.name] = tier.url, _look(tier, show)
    if as_json:
        print_json(
            {
                name: {"url": url, "checks": [asdict(check) for check in checks]}
                for name, (url, checks) in found.items()
            }
        )
    if any(check.outcome == "failed" for _, checks in found.values() for check in checks):
        raise click.exceptions.Exit(1)


def _look(tier: TierConfig, show: Callable[[Check], None]) -> list[Check]:
    from tierstore.ladder.diagnosis import diagnose

    checks = []
    for check in diagnose(tier):
        show(check)  # at once: a server that does not answer takes its time
        checks.append(check)
    return checks


def _silent(check: Check) -> None:
    del check


def _show(check: Check) -> None:
    failed = check.outcome == "failed"
    say(f"  {check.outcome:<8}", fg=_COLOURS[check.outcome], bold=failed, nl=False)
    say(f"{check.name}: {check.detail}")
    if check.advice:
        say(f"          -> {check.advice}")
