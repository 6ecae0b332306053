"""`tierstore migrate`: from any store to any other, resumable, verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from tierstore.cli.cluster import ClusterArguments
from tierstore.cli.moving import (
    CONFLICT,
    Choice,
    MoveArguments,
    RemovalArguments,
    SpecialArguments,
    judge,
    leave,
)
from tierstore.cli.options import option, takes
from tierstore.cli.selecting import Globs, Selecting, SelectionArguments
from tierstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MigrateArguments(
    MoveArguments, SelectionArguments, SpecialArguments, ClusterArguments, RemovalArguments
):
    """What of SRC, where to, and what becomes of it."""

    run: Annotated[
        Globs,
        option(
            "--run",
            multiple=True,
            metavar="GLOB",
            help="Move checkpoints of these runs; repeatable.",
        ),
    ] = ()
    step: Annotated[
        tuple[str, ...],
        option(
            "--step",
            multiple=True,
            metavar="STEP",
            help="Of --run: 100, 100:200, 100: or 'latest'; may be repeated.",
        ),
    ] = ()
    conflict: Annotated[
        Choice,
        option(
            "--conflict",
            type=CONFLICT,
            show_default=True,
            help="What to do if DST has something different.",
        ),
    ] = Choice.fail


@click.command(cls=Selecting)
@takes(MigrateArguments)
def run(given: MigrateArguments) -> None:
    """Copy SRC to DST and verify it; run it again to resume after any kill.

    SRC and DST are two tiers if --run says which checkpoints are wanted; else SRC is one object or
    all that is below it. What is there already and identical is not sent again. Copying begins
    while SRC is still being listed. Commits arrive last: a reader never sees half a checkpoint.
    Exits with 1 if something could not be migrated.
    """
    from tierstore.operations.move import migrate

    if given.step and not given.run:
        raise ConfigError("--step is of a run", hint="say of which one with --run")
    if given.run and given.selects:
        raise ConfigError("--include and --exclude are not for checkpoints, which are whole")
    view = given.view()
    result = migrate(
        given.source,
        given.target,
        runs=given.run,
        steps=given.step,
        select=None if given.run else given.selection(),
        conflict=given.conflict.value,
        delete_source=given.delete_source,
        grace=given.grace,
        follow_links=given.follow,
        workers=given.workers,
        **given.options(view),
    )
    judge(result, view)
    leave(result, given)
