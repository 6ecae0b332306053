"""`tierstore cp`: one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from tierstore.cli.moving import CONFLICT, Choice, MoveArguments, judge
from tierstore.cli.options import option, takes


@dataclass(frozen=True, kw_only=True)
class CopyArguments(MoveArguments):
    """What to do where DST exists."""

    conflict: Annotated[
        Choice,
        option(
            "--conflict",
            type=CONFLICT,
            show_default=True,
            help="What to do if DST exists and differs.",
        ),
    ] = Choice.fail


@click.command
@takes(CopyArguments)
def run(given: CopyArguments) -> None:
    """Copy one object and verify it; run it again to resume within it after any kill."""
    from tierstore.operations.move import copy

    view = given.view()
    options = given.options(view)
    judge(copy(given.source, given.target, conflict=given.conflict.value, **options), view)
