"""Moving what was found from one end to the other, as `migrate`, `sync` and `cp` do it."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import click

from tierstore.checkpoint.delete import GRACE
from tierstore.cli.cluster import Elsewhere
from tierstore.cli.ends import Limits
from tierstore.cli.migrated import JsonView, TextView, View
from tierstore.cli.options import (
    PATH,
    PLACE,
    argument,
    dry_option,
    flag,
    json_option,
    option,
)
from tierstore.cli.output import print_error
from tierstore.errors import ConfigError, InvalidKeyError, TierstoreError

if TYPE_CHECKING:
    from tierstore.cli.ends import Between
    from tierstore.migration.ends import Ends
    from tierstore.transfer.engine.crew import Effort
    from tierstore.transfer.engine.entries import Item
    from tierstore.transfer.engine.messages import Report
    from tierstore.transfer.engine.rules import Conflict
    from tierstore.transfer.engine.run import Engine

_INTERRUPTED = 128


class OnConflict(StrEnum):
    """What to do where the destination has something else."""

    skip = "skip"
    fail = "fail"
    overwrite = "overwrite"


CONFLICT = click.Choice(OnConflict)


@dataclass(frozen=True, kw_only=True)
class MoveOptions:
    """From where to where, and how."""

    source: Annotated[
        str,
        argument(
            type=PLACE, metavar="SRC", help="A URL, a path, or the name of a configured tier."
        ),
    ]
    target: Annotated[
        str,
        argument(
            type=PLACE,
            metavar="DST",
            help="The same; one object goes into it if it ends in '/'.",
        ),
    ]
    dry_run: Annotated[bool, dry_option] = False
    bandwidth: Annotated[
        str | None,
        option(
            "--bandwidth",
            metavar="RATE",
            help="Bytes a second at most, such as 200M.",
        ),
    ] = None
    requests: Annotated[
        int | None,
        option(
            "--requests",
            type=click.IntRange(min=1),
            metavar="N",
            help="Requests in flight at each end.",
        ),
    ] = None
    journal: Annotated[
        Path | None,
        option("--journal", type=PATH, metavar="FILE", help="What a later run goes on from."),
    ] = None
    checksum: Annotated[
        bool, flag("--checksum", help="Compare all bytes; believe no time and no earlier run.")
    ] = False
    config: Annotated[
        str | None,
        option("--config", "-c", type=PLACE, metavar="FILE", help="Where tiers are named."),
    ] = None
    as_json: Annotated[bool, json_option] = False

    @property
    def limits(self) -> Limits:
        """How hard the ends may be used."""
        return Limits(self.bandwidth, self.requests, self.config, hasty=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """What those have who still read what is deleted."""

    grace: Annotated[
        float,
        option(
            "--grace",
            type=click.FloatRange(min=0),
            show_default=True,
            metavar="SECONDS",
            help="How long readers of a deleted checkpoint have before its data is removed.",
        ),
    ] = GRACE

    def __post_init__(self) -> None:
        if not math.isfinite(self.grace):
            raise ConfigError(f"--grace is {self.grace}, not a number of seconds")


@dataclass(frozen=True, kw_only=True)
class Removal(Readers):
    """What becomes of the source."""

    delete_source: Annotated[
        bool,
        flag(
            "--delete-source",
            help="Remove from SRC what is verified at DST.",
        ),
    ] = False


class Links(StrEnum):
    """What becomes of symbolic links in a folder."""

    follow = "follow"
    skip = "skip"


@dataclass(frozen=True, kw_only=True)
class Special:
    """What becomes of what is no file."""

    links: Annotated[
        Links,
        option(
            "--links",
            type=click.Choice(Links),
            show_default=True,
            help="Links in a folder are what they point to, or are left out.",
        ),
    ] = Links.follow
    skip_special: Annotated[
        bool,
        flag("--skip-special", help="It is no failure that something is no file, or has no name."),
    ] = False

    @property
    def follow(self) -> bool:
        """Whether links are followed."""
        return self.links is Links.follow


class Moved(NamedTuple):
    """How it went, if nothing has failed.

    Attributes:
        left_out: things that are no objects, and that nobody asked to leave out.
        blocked: the keys in whose place the destination has something else.
        remaining: objects that the source has still.
        coming: objects that a real run would have brought where nothing is.
    """

    left_out: int
    blocked: set[str]
    remaining: int
    coming: int


_STAYS, _HERE = Removal(), Elsewhere()


def move(
    between: Between,
    found: Iterable[Item],
    conflict: Conflict,
    options: MoveOptions,
    removal: Removal = _STAYS,
    elsewhere: Elsewhere = _HERE,
    *,
    only_links: bool = False,
) -> Moved:
    """Migrate, or say what would be done, and say how it went.

    Raises:
        TierstoreError: there is nothing to migrate.
        Exit: with 1 if not everything was migrated, or as the signal that stopped it wants; where
            only links are removed not for a file, which is tried again with the rest.
    """
    from tierstore.migration.forecast import Forecast
    from tierstore.transfer.engine.entries import Outcome
    from tierstore.transfer.engine.feed import Listing
    from tierstore.transfer.engine.journal import Journal
    from tierstore.transfer.engine.run import Engine

    view: View = (JsonView if options.as_json else TextView)(dry=options.dry_run)
    ends, stores = between.ends, between.ends.stores
    crew = elsewhere.crew(between.recipe, stores, dry=options.dry_run)
    forecast = Forecast(ends.source) if options.dry_run else None
    path, dry = options.journal or _default_journal(between), options.dry_run
    told = _Told(view, ends)
    with ExitStack() as opened:
        if crew is not None:
            opened.enter_context(closing(crew))
        notes = Journal(path, between.source, between.target, trusted=not options.checksum, dry=dry)
        opened.enter_context(closing(notes))
        begun, used = time.monotonic(), time.process_time()
        migration = Engine(
            stores,
            notes,
            Listing(found),
            conflict=conflict,
            removes="links" if only_links else removal.delete_source,
            grace=removal.grace,
            report=told.report if forecast is None else view.planning(forecast.add),
            tick=view.tick,
        )
        with view, _signals(migration) as stopped:
            migration.run(crew)
            seconds = forecast.seconds() if forecast and migration.complete else None
    totals = migration.totals
    if options.dry_run:
        view.plan_summary(totals, seconds)
    else:
        seconds, cpu = time.monotonic() - begun, time.process_time() - used
        cost = {"seconds": seconds, "cpu_seconds": cpu, "retries": stores.retries}
        cost = cost if crew is None else _with_workers(cost, crew.effort)
        view.summary(totals, cost, complete=migration.complete, journal=str(path))
    _judge(migration, view, between, stopped, goes_on=only_links and not told.needed)
    remaining = totals.found - totals.removed - totals.settled[Outcome.LEFT_OUT]
    coming = totals.created if options.dry_run else 0
    return Moved(view.left_out, view.blocked, remaining, coming)


def leave(moved: Moved, special: Special) -> None:
    """End a command that has failed in nothing.

    Raises:
        Exit: with 1 if something was left out that had better not be.
    """
    if moved.left_out and not special.skip_special:
        raise click.exceptions.Exit(1)


def _with_workers(cost: dict[str, float], effort: Effort) -> dict[str, float]:
    return cost | {
        "cpu_seconds": cost["cpu_seconds"] + effort.cpu_seconds,
        "retries": cost["retries"] + effort.retries,
        "workers": effort.workers,
        "workers_lost": effort.lost,
    }


@dataclass(slots=True)
class _Told:
    """Shows how objects end.

    Attributes:
        view: where.
        ends: both.
        needed: a link failed, or what may hold some: what they lead to is needed still.
    """

    view: View
    ends: Ends
    needed: bool = False

    def report(self, report: Report) -> None:
        """Show how an object ended."""
        self.view.report(report)
        self.needed = self.needed or (report.outcome.value == "failed" and self._leads(report.key))

    def _leads(self, key: str) -> bool:
        from tierstore.transfer.engine.removal import is_link

        try:
            return key.endswith("/") or is_link(self.ends.source, key)
        except InvalidKeyError:  # a name that only stands for it
            return True


def _judge(
    migration: Engine, view: View, between: Between, stopped: list[int], *, goes_on: bool
) -> None:
    if migration.trouble:
        print_error(
            TierstoreError(
                f"it stopped before its end: {migration.trouble}",
                hint="the same command goes on where it stopped",
            )
        )
        raise click.exceptions.Exit(1)
    if stopped:
        raise click.exceptions.Exit(_INTERRUPTED + stopped[0])
    totals = migration.totals
    if totals.found == sum(n for outcome, n in totals.settled.items() if outcome.is_nothing):
        raise TierstoreError(
            f"there is nothing to migrate at {between.source}",
            hint="a pattern for a folder and all that is below it ends in '/'",
        )
    if view.failed and not goes_on:
        raise click.exceptions.Exit(1)


@contextmanager
def _signals(migration: Engine) -> Iterator[list[int]]:
    """Have the first SIGINT or SIGTERM stop the migration, and the next one this process."""
    seen: list[int] = []

    def stop(number: int, _frame: object) -> None:
        seen.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        migration.stop()

    before: dict[int, Any] = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _default_journal(between: Between) -> Path:
    """Return the journal of this pair of places: the same command finds it again."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    names = f"{between.source}\n{between.target}"
    name = hashlib.sha256(names.encode()).hexdigest()[:16]
    return Path(home).expanduser() / "tierstore" / "migrate" / f"{name}.journal"
