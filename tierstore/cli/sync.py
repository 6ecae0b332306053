"""`tierstore sync`: make one place what another one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.ends import open_ends
from tierstore.cli.moving import MoveOptions, OnConflict, move
from tierstore.cli.options import flag, takes
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.selecting import Rules, Selecting
from tierstore.errors import ConfigError, TierstoreError

if TYPE_CHECKING:
    from tierstore.transfer.migrate.mirror import Extra, Mirror

_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Options(MoveOptions, Rules):
    """What is mirrored, and how much may be deleted."""

    delete: Annotated[bool, flag("--delete", help="Delete at DST what SRC does not have.")] = False
    force: Annotated[
        bool, flag("--force", help="Even if that is more than half of what DST has.")
    ] = False


@click.command(cls=Selecting)
@takes(Options)
def run(options: Options) -> None:
    """Make DST what SRC is: copy what is missing or differs and, with --delete, remove the rest.

    Nothing is deleted before all has arrived, nor if SRC is empty, nor, without --force, more than
    half of what DST has. What is excluded stays. Checkpoints become tombstones before their data
    goes.
    """
    from tierstore.transfer.migrate.listing import objects
    from tierstore.transfer.migrate.mirror import Mirror

    selection = options.selection()
    with open_ends(options.source, options.target, options.limits) as between:
        if between.ends.only is not None:
            raise ConfigError(f"{between.source} is one object", hint="`tierstore cp` copies it")
        move(between, objects(between.ends, selection), OnConflict.overwrite, options)
        if options.delete:
            mirror = Mirror(between.ends, selection)
            extra = mirror.extra()
            _guard(extra, options, between.target)
            _remove(mirror, extra, options)


def _guard(extra: Extra, options: Options, target: str) -> None:
    if extra.objects > extra.total * _HALF and not options.force:
        raise TierstoreError(
            f"{extra.objects} of {extra.total} objects at {target} would be deleted; none was",
            hint="if SRC is the right one, say --force",
        )


def _remove(mirror: Mirror, extra: Extra, options: Options) -> None:
    done = 0
    if not options.dry_run:
        for keys in mirror.remove():
            done += len(keys)
            for key in keys if options.as_json else ():
                print_json({"event": "deleted", "key": key}, indent=None)
    numbers = {"objects": extra.objects, "bytes": extra.nbytes, "deleted": done}
    if options.as_json:
        print_json({"event": "delete", **numbers}, indent=None)
        return
    what = f"{count(extra.objects, 'object')} of {size(extra.nbytes)}"
    say(f"{what} {'would be' if options.dry_run else 'were'} deleted at DST")
