"""`tierstore sync`: make one place what another one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.ends import open_ends
from tierstore.cli.moving import MoveOptions, Readers, Special, leave, move
from tierstore.cli.options import flag, takes
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.selecting import Rules, Selecting
from tierstore.errors import ConfigError, TierstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierstore.cli.moving import Moved
    from tierstore.migration.mirror import Extra
    from tierstore.transfer.engine.rules import Conflict

_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Options(MoveOptions, Rules, Special, Readers):
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
    half of what DST has. What is excluded stays. Checkpoints become tombstones first, and their
    data goes --grace seconds later.
    """
    from tierstore.migration.listing import objects
    from tierstore.migration.mirror import Mirror

    selection = options.selection()
    with open_ends(options.source, options.target, options.limits) as between:
        if between.ends.only is not None:
            raise ConfigError(f"{between.source} is one object", hint="`tierstore cp` copies it")

        def mirrored(conflict: Conflict) -> Moved:
            found = objects(between.ends, selection, follow=options.follow)
            return move(between, found, conflict, options)

        moved = mirrored("mirror" if options.delete else "overwrite")
        if options.delete:
            mirror = Mirror(between.ends, selection, follow=options.follow, grace=options.grace)
            extra = mirror.extra(moved.coming)  # noqa: S610 - no Django
            _guard(extra, options, between.target)
            if moved.blocked:
                mirror.check_places(moved.blocked)
            done = 0
            if moved.blocked and not options.dry_run:
                done = _remove(mirror.remove(extra.objects, moved.blocked), options)
                moved = mirrored("overwrite")
            if not options.dry_run:
                done += _remove(mirror.remove(extra.objects - done), options)
            _say(extra, done, options)
    leave(moved, options)


def _guard(extra: Extra, options: Options, target: str) -> None:
    if extra.objects > extra.total * _HALF and not options.force:
        raise TierstoreError(
            f"{extra.objects} of {extra.total} objects at {target} would be deleted; none was",
            hint="if SRC is the right one, say --force",
        )


def _remove(batches: Iterator[list[str]], options: Options) -> int:
    done = 0
    for keys in batches:
        done += len(keys)
        for key in keys if options.as_json else ():
            print_json({"event": "deleted", "key": key}, indent=None)
    return done


def _say(extra: Extra, done: int, options: Options) -> None:
    if options.as_json:
        numbers = {"objects": extra.objects, "bytes": extra.nbytes, "deleted": done}
        print_json({"event": "delete", **numbers}, indent=None)
        return
    what = f"{count(extra.objects, 'object')} of {size(extra.nbytes)}"
    say(f"{what} {'would be' if options.dry_run else 'were'} deleted at DST")
