"""`tierstore verify`: read everything again and hold it against its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tierstore.cli.options import (
    config_option,
    json_option,
    run_argument,
    step_argument,
    tier_option,
)
from tierstore.cli.output import count, print_json, print_unseen, say, size
from tierstore.cli.progress import bars

if TYPE_CHECKING:
    from tierstore.operations.verify import CheckedCopy, Verified

_SHOWN = 8
"""Damaged blocks of one file that are listed for people; programs get all."""


@click.command
@run_argument("run")
@step_argument("step")
@config_option("config")
@tier_option("tier")
@json_option("as_json")
def run(
    run: str, step: int | None, config: tuple[str, ...], tier: str | None, as_json: bool
) -> None:
    """Read all of one checkpoint on every tier that holds it, and report all damage.

    Looks at the commit, the manifest, the fragments and every block of every segment. Exits with 1
    if anything is damaged or a tier cannot be read.
    """
    from tierstore.operations.verify import verify

    with bars() as progress:
        found = verify(config, run, step, tier=tier, progress=progress)
    print_json(found.to_json()) if as_json else _print(found)
    print_unseen(found.unseen.items())
    if not found.good:
        raise click.exceptions.Exit(1)


def _print(found: Verified) -> None:
    for name, copy in found.copies.items():
        say(f"{found.run} step {found.step} on {name}: ", nl=False)
        state = "good" if copy.good else "damaged" if copy.damage else "unreadable"
        say(state, fg="green" if copy.good else "red", bold=not copy.good, nl=False)
        say(f", {count(copy.files, 'file')}, {size(copy.nbytes)} read")
        for line in _lines(copy):
            say(f"  {line}")
        if copy.error:
            say(f"  {copy.error}")


def _lines(copy: CheckedCopy) -> Iterator[str]:
    shown: dict[str, int] = {}
    for damage in copy.damage:
        shown[damage.file] = shown.get(damage.file, 0) + 1
        if shown[damage.file] <= _SHOWN:
            block = "" if damage.block is None else f" block {damage.block}"
            yield f"{damage.file}{block}: {damage.outcome}"
    for file, blocks in shown.items():
        if blocks > _SHOWN:
            yield f"{file}: and {count(blocks - _SHOWN, 'more block')}"
