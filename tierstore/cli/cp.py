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
            help="Where DST is something else already.",
        ),
    ] = Choice.fail


@click.command
@takes(CopyArguments)
def run(given: CopyArguments) -> None:
    """Copy one object, verify it, and go on inside it after any kill with the same command."""
    from tierstore.operations.move import copy

    view = given.view()
    options = given.options(view)
    judge(copy(given.source, given.target, conflict=given.conflict.value, **options), view)
