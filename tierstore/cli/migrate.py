"""`tierstore migrate`: from any store to any other, resumable, verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from tierstore.cli.cluster import Elsewhere
from tierstore.cli.ends import open_ends
from tierstore.cli.moving import (
    CONFLICT,
    Moved,
    MoveOptions,
    OnConflict,
    Removal,
    Special,
    leave,
    move,
)
from tierstore.cli.options import option, takes
from tierstore.cli.selecting import Globs, Rules, Selecting
from tierstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(MoveOptions, Rules, Special, Elsewhere, Removal):
    """What of SRC, where to, and what becomes of it."""

    run: Annotated[
        Globs,
        option(
            "--run",
            multiple=True,
            metavar="GLOB",
            help="Checkpoints of these runs; may be repeated.",
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
        OnConflict,
        option(
            "--conflict",
            type=CONFLICT,
            show_default=True,
            help="Where DST has something else already.",
        ),
    ] = OnConflict.fail


@click.command(cls=Selecting)
@takes(Options)
def run(options: Options) -> None:
    """Copy SRC to DST, verify it, and go on after any kill with the same command.

    SRC and DST are two tiers if --run says which checkpoints are wanted; else SRC is one object or
    all that is below it. What is there already and identical is not sent again. Copying begins
    while SRC is still being listed. Commits arrive last: a reader never sees half a checkpoint.
    Exits with 1 if something could not be migrated.
    """
    from tierstore.migration.apart import holds_links
    from tierstore.migration.checkpoints import Steps, checkpoints
    from tierstore.migration.listing import objects

    if options.step and not options.run:
        raise ConfigError("--step is of a run", hint="say of which one with --run")
    if options.run and options.selects:
        raise ConfigError("--include and --exclude are not for checkpoints, which are whole")
    steps = Steps.parse(options.step)
    selection = options.selection()
    runs = options.run
    with open_ends(options.source, options.target, options.limits, runs) as between:

        def moved(*, only_links: bool) -> Moved:
            if options.run:
                found = checkpoints(between.ends, options.run, steps)
            else:
                found = objects(between.ends, selection, follow=options.follow)
            how = (options, options, options)
            return move(between, found, options.conflict.value, *how, only_links=only_links)

        removes = options.delete_source and not (options.dry_run or options.run)
        # What a link leads to goes once the link has: else it would lead nowhere.
        twice = removes and options.follow and holds_links(between.ends)
        result = moved(only_links=twice)
        if twice and result.remaining:
            result = moved(only_links=False)
    leave(result, options)
