"""`tierstore cp`: one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from tierstore.cli.ends import open_ends
from tierstore.cli.moving import CONFLICT, MoveOptions, OnConflict, move
from tierstore.cli.options import option, takes
from tierstore.errors import NotFoundError


@dataclass(frozen=True, kw_only=True)
class Options(MoveOptions):
    """What to do where DST exists."""

    conflict: Annotated[
        OnConflict,
        option(
            "--conflict",
            type=CONFLICT,
            show_default=True,
            help="Where DST is something else already.",
        ),
    ] = OnConflict.fail


@click.command
@takes(Options)
def run(options: Options) -> None:
    """Copy one object, verify it, and go on inside it after any kill with the same command."""
    from tierstore.migration.listing import objects
    from tierstore.patterns import Selection

    with open_ends(options.source, options.target, options.limits) as between:
        if between.ends.only is None:
            raise NotFoundError(
                f"there is no object {between.source}", hint="`tierstore migrate` copies folders"
            )
        move(between, objects(between.ends, Selection()), options.conflict.value, options)
