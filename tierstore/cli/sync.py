"""`tierstore sync`: make one place what another one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.moving import GraceArguments, MoveArguments, SpecialArguments, judge, leave
from tierstore.cli.options import flag, takes
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.selecting import Selecting, SelectionArguments

if TYPE_CHECKING:
    from tierstore.operations.move import Extra


@dataclass(frozen=True, kw_only=True)
class SyncArguments(MoveArguments, SelectionArguments, SpecialArguments, GraceArguments):
    """What is mirrored, and how much may be deleted."""

    delete: Annotated[bool, flag("--delete", help="Delete from DST what SRC does not have.")] = (
        False
    )
    force: Annotated[bool, flag("--force", help="Delete even more than half of DST.")] = False


@click.command(cls=Selecting)
@takes(SyncArguments)
def run(given: SyncArguments) -> None:
    """Mirror SRC to DST: copy what is missing or differs; with --delete, remove the rest.

    Nothing is deleted before all has arrived, nor if SRC is empty, nor, without --force, more than
    half of what DST has. What is excluded stays. Checkpoints become tombstones first, and their
    data goes --grace seconds later.
    """
    from tierstore.operations.move import sync

    view = given.view()
    result = sync(
        given.source,
        given.target,
        select=given.selection(),
        delete=given.delete,
        force=given.force,
        grace=given.grace,
        follow_links=given.follow,
        **given.options(view),
    )
    judge(result, view)
    if result.extra is not None:
        _say(result.extra, result.deleted, given)
    leave(result, given)


def _say(extra: Extra, done: int, given: SyncArguments) -> None:
    if given.as_json:
        numbers = {"objects": extra.objects, "bytes": extra.nbytes, "deleted": done}
        print_json({"event": "delete", **numbers}, indent=None)
        return
    what = f"{count(extra.objects, 'object')} of {size(extra.nbytes)}"
    say(f"{what} {'would be' if given.dry_run else 'were'} deleted at DST")
