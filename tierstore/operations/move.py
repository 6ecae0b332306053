"""Moving between stores: migrations, mirrors, single objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from tierstore.errors import ConfigError, NotFoundError, TierstoreError
from tierstore.migration.mirror import Extra, Mirror
from tierstore.operations.ends import End, open_ends
from tierstore.operations.moved import MigrationResult, Moved, Outcome, Report, SyncResult, Totals
from tierstore.operations.moving import Pass
from tierstore.operations.terms import GRACE, MoveProgress, OnConflict, Terms, Workers, heard_by

if TYPE_CHECKING:
    from tierstore.operations.ends import Between
    from tierstore.operations.tiers import Source
    from tierstore.patterns import Selection
    from tierstore.transfer.engine.rules import Conflict, Removes

__all__ = [
    "Extra",
    "MigrateOptions",
    "MigrationResult",
    "MoveOptions",
    "MoveProgress",
    "Moved",
    "OnConflict",
    "Outcome",
    "Report",
    "SyncOptions",
    "SyncResult",
    "Totals",
    "Workers",
    "copy",
    "migrate",
    "sync",
]

_HALF = 0.5


class MoveOptions(TypedDict, total=False):
    """How objects are moved. Each key may be left out.

    Attributes:
        dry_run: find out what would be done, and do nothing.
        journal: the file that a later call goes on from; left out, one for each source and
            destination in $XDG_STATE_HOME/tierstore/migrate.
        checksum: compare all bytes; believe no time and no earlier run.
        bandwidth: bytes a second at each end, at most.
        requests: in flight at each end, at most.
        config: the configuration that names tiers; left out, the default one, if there is any.
        progress: hears how far it is: a function of the totals, or a `MoveProgress`.
    """

    dry_run: bool
    journal: str | os.PathLike[str] | None
    checksum: bool
    bandwidth: int | None
    requests: int | None
    config: Source | None
    progress: MoveProgress | Callable[[Totals], None] | None


class SyncOptions(MoveOptions, total=False):
    """How a mirror is made.

    Attributes:
        follow_links: links in a folder are what they point to, as by default; else they are left
            out.
    """

    follow_links: bool


class MigrateOptions(SyncOptions, total=False):
    """How a migration is made.

    Attributes:
        workers: machines that do the work; left out, this process does it.
    """

    workers: Workers | None


def migrate(
    source: End,
    target: End,
    *,
    runs: Sequence[str] = (),
    steps: Sequence[str | int] = (),
    select: Selection | None = None,
    conflict: OnConflict = "fail",
    delete_source: bool = False,
    grace: float = GRACE,
    **options: Unpack[MigrateOptions],
) -> MigrationResult:
    """Copy what is at one place to another, verify it, and go on after any kill by the same call.

    Source and target are two tiers if `runs` says which checkpoints are wanted; else the source is
    one object or all that is below it. What is there already and identical is not sent again.
    Commits arrive last: a reader never sees half a checkpoint.

    Args:
        source: a URL, a path, the name of a configured tier, or a `TierConfig`.
        target: the same; one object goes into it if it ends in "/".
        runs: globs: checkpoints of runs with such names.
        steps: of these runs: 100, "100:200", "100:" or "latest"; all if empty.
        select: which keys, where no runs are named.
        conflict: what to do where the target has something else already.
        delete_source: remove from the source what is verified at the target.
        grace: seconds that readers of a checkpoint have before its data is removed.
        options: see `MigrateOptions`.

    Returns:
        How it went: that objects failed, that there is no such run, or that it was stopped, is in
        there; its `check` raises it.

    Raises:
        ConfigError: an argument is wrong, or the two are one place, or one lies in the other.
        TierstoreError: there is nothing to migrate, or an end cannot be asked.
    """
    from tierstore.migration.checkpoints import Steps, checkpoints
    from tierstore.patterns import Selection

    names = (runs,) if isinstance(runs, str) else tuple(runs)
    wanted = Steps.parse([str(step) for step in ((steps,) if isinstance(steps, str) else steps)])
    if steps and not names:
        raise ConfigError("steps are of a run", hint="say of which one with runs")
    if names and select is not None:
        raise ConfigError("keys are not selected of checkpoints, which are whole")
    _check_known(MigrateOptions, options)
    terms = Terms(delete_source=delete_source, grace=grace, **options)
    selection = select or Selection()
    with open_ends(source, target, terms.access, names) as between:
        if names:
            found = checkpoints(between.ends, names, wanted)
            done = Pass(between, terms, conflict, delete_source).run(found)
            return MigrationResult(between.source, between.target, (done,))
        passes = _objects_moved(between, selection, terms, conflict)
        return MigrationResult(between.source, between.target, passes)


def _objects_moved(
    between: Between, selection: Selection, terms: Terms, conflict: Conflict
) -> tuple[Moved, ...]:
    """Move what is selected; links before what they lead to, else they would lead nowhere."""
    from tierstore.migration.apart import holds_links
    from tierstore.migration.listing import objects

    def moved(removes: Removes) -> tuple[Pass, Moved]:
        one = Pass(between, terms, conflict, removes)
        return one, one.run(objects(between.ends, selection, follow=terms.follow_links))

    removes = terms.delete_source and not terms.dry_run
    if not (removes and terms.follow_links and holds_links(between.ends)):
        return (moved(terms.delete_source)[1],)
    one, first = moved("links")
    if first.trouble or first.stopped or one.links_failed or not first.remaining:
        return (first,)
    return first, moved(terms.delete_source)[1]


def copy(
    source: End, target: End, *, conflict: OnConflict = "fail", **options: Unpack[MoveOptions]
) -> MigrationResult:
    """Copy one object, verify it, and go on inside it after any kill by the same call.

    Args:
        source: as in `migrate`.
        target: as in `migrate`.
        conflict: what to do where the target is something else already.
        options: see `MoveOptions`.

    Raises:
        NotFoundError: there is no such object.
        ConfigError: an argument is wrong, or the two are one object.
        TierstoreError: an end cannot be asked.
    """
    from tierstore.migration.listing import objects
    from tierstore.patterns import Selection

    _check_known(MoveOptions, options)
    terms = Terms(**options)
    with open_ends(source, target, terms.access) as between:
        if between.ends.only is None:
            raise NotFoundError(
                f"there is no object {between.source}", hint="`tierstore migrate` copies folders"
            )
        done = Pass(between, terms, conflict).run(objects(between.ends, Selection()))
        return MigrationResult(between.source, between.target, (done,))


def sync(
    source: End,
    target: End,
    *,
    select: Selection | None = None,
    delete: bool = False,
    force: bool = False,
    grace: float = GRACE,
    **options: Unpack[SyncOptions],
) -> SyncResult:
    """Make the target what the source is: copy what is missing or differs, and remove the rest.

    Nothing is deleted before all has arrived, nor if the source is empty, nor, without `force`,
    more than half of what the target has. What is not selected stays. Checkpoints become tombstones
    first, and their data goes when readers have had their grace.

    Args:
        source: as in `migrate`.
        target: as in `migrate`.
        select: which keys.
        delete: delete at the target what the source does not have.
        force: even if that is more than half of what the target has.
        grace: seconds that readers of a deleted checkpoint have before its data is removed.
        options: see `SyncOptions`.

    Raises:
        BlockedError: what is in an object's place is not to be deleted.
        ConfigError: an argument is wrong, or the two are one place, or one lies in the other.
        TierstoreError: there is nothing at the source, too much would be deleted, or an end cannot
            be asked.
    """
    from tierstore.migration.listing import objects
    from tierstore.patterns import Selection

    _check_known(SyncOptions, options)
    terms, selection = Terms(grace=grace, **options), select or Selection()
    with open_ends(source, target, terms.access) as between:
        if between.ends.only is not None:
            raise ConfigError(f"{between.source} is one object", hint="`tierstore cp` copies it")

        def mirrored(conflict: Conflict) -> Moved:
            found = objects(between.ends, selection, follow=terms.follow_links)
            return Pass(between, terms, conflict).run(found)

        first = mirrored("mirror" if delete else "overwrite")
        if not (delete and first.good):
            return SyncResult(between.source, between.target, (first,))
        mirror = Mirror(between.ends, selection, follow=terms.follow_links, grace=grace)
        extra = mirror.extra(first.coming)  # noqa: S610 - no Django
        _guard(extra, between.target, force=force)
        if first.blocked:
            mirror.check_places(first.blocked)
        passes, done = _removed(mirror, extra, first, terms, mirrored)
        return SyncResult(between.source, between.target, passes, extra, done)


def _check_known(kind: type, options: Mapping[str, object]) -> None:
    """Refuse what only another operation takes: it would be left out in silence."""
    for name in options.keys() - kind.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}")


def _removed(
    mirror: Mirror,
    extra: Extra,
    first: Moved,
    terms: Terms,
    mirrored: Callable[[Conflict], Moved],
) -> tuple[tuple[Moved, ...], int]:
    """Remove what is too much, and then copy what had no place; return all passes, and how much."""
    if terms.dry_run:
        return (first,), 0
    heard, done = heard_by(terms.progress), 0
    passes: tuple[Moved, ...] = (first,)
    if first.blocked:
        done = _remove(mirror.remove(extra.objects, first.blocked), heard)
        passes += (mirrored("overwrite"),)
        if not passes[-1].good:
            return passes, done
    return passes, done + _remove(mirror.remove(extra.objects - done), heard)


def _remove(batches: Iterator[list[str]], heard: MoveProgress) -> int:
    done = 0
    for keys in batches:
        done += len(keys)
        heard.removed(keys)
    return done


def _guard(extra: Extra, target: str, *, force: bool) -> None:
    if extra.objects > extra.total * _HALF and not force:
        raise TierstoreError(
            f"{extra.objects} of {extra.total} objects at {target} would be deleted; none was",
            hint="if SRC is the right one, say --force",
        )
