"""`tierstore doctor`: can every tier do what a save needs of it?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from tierstore.cli.output import ConfigOption, JsonOption, console, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierstore.backend import Check
    from tierstore.config import TierConfig

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def run(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk; advise.

    Writes and deletes a few small objects below doctor/ on every tier. Exits with 1 if a check
    failed.
    """
    from tierstore.config import load_config

    show: Callable[[Check], None] = _silent if as_json else _show
    found: dict[str, tuple[str, list[Check]]] = {}
    for tier in load_config(*(config or [])).tiers:
        if not as_json:
            out = console()
            out.print(tier.name, style="bold", end="")
            out.print(f"  {tier.url}", soft_wrap=True)
        found[tier.name] = tier.url, _look(tier, show)
    if as_json:
        print_json(
            {
                name: {"url": url, "checks": [asdict(check) for check in checks]}
                for name, (url, checks) in found.items()
            }
        )
    if any(check.outcome == "failed" for _, checks in found.values() for check in checks):
        raise typer.Exit(1)


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
    out = console()
    out.print(f"  {check.outcome:<8}", style=_COLOURS[check.outcome], end="")
    out.print(f"{check.name}: {check.detail}", soft_wrap=True)
    if check.advice:
        out.print(f"          -> {check.advice}", soft_wrap=True)
