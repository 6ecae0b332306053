"""`tierstore doctor`: can every tier do what a save needs of it?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from tierstore.cli.output import ConfigOption, JsonOption, console, print_json

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def run(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk; advise.

    Writes and deletes a few small objects below doctor/ on every tier. Exits with 1 if a check
    failed.
    """
    from tierstore.config import load_config
    from tierstore.ladder.diagnosis import diagnose

    findings = {
        tier.name: (tier.url, list(diagnose(tier))) for tier in load_config(*(config or [])).tiers
    }
    if as_json:
        print_json(
            {
                name: {"url": url, "checks": [asdict(check) for check in checks]}
                for name, (url, checks) in findings.items()
            }
        )
    else:
        out = console()
        for name, (url, checks) in findings.items():
            out.print(f"[bold]{name}[/]  {url}")
            for check in checks:
                out.print(f"  [{_COLOURS[check.outcome]}]{check.outcome:<8}[/]", end="")
                out.print(f"{check.name}: {check.detail}", markup=False, soft_wrap=True)
                if check.advice:
                    out.print(f"          -> {check.advice}", markup=False, soft_wrap=True)
    if any(check.outcome == "failed" for _, checks in findings.values() for check in checks):
        raise typer.Exit(1)
