"""What `migrate`, `sync` and `cp` are all told, and how they end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.amounts import some_bytes
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
from tierstore.cli.stopping import INTERRUPTED
from tierstore.errors import ConfigError, TierstoreError
from tierstore.operations import GRACE

if TYPE_CHECKING:
    from tierstore.cli.migrated import View
    from tierstore.operations.move import MigrationResult, MoveOptions


class Choice(StrEnum):
    """What to do where the destination has something else."""

    skip = "skip"
    fail = "fail"
    overwrite = "overwrite"


CONFLICT = click.Choice(Choice)


@dataclass(frozen=True, kw_only=True)
class MoveArguments:
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
            help="Likewise; a single object is copied into it if it ends in '/'.",
        ),
    ]
    dry_run: Annotated[bool, dry_option] = False
    bandwidth: Annotated[
        str | None,
        option(
            "--bandwidth",
            metavar="RATE",
            help="At most this many bytes per second, such as 200M.",
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
        option(
            "--journal", type=PATH, metavar="FILE", help="The file that a later run resumes from."
        ),
    ] = None
    checksum: Annotated[
        bool, flag("--checksum", help="Compare all bytes; trust no times and no earlier run.")
    ] = False
    config: Annotated[
        str | None,
        option(
            "--config", "-c", type=PLACE, metavar="FILE", help="Configuration file for tier names."
        ),
    ] = None
    as_json: Annotated[bool, json_option] = False

    def view(self) -> View:
        """Return where it is shown."""
        from tierstore.cli.migrated import JsonView, TextView

        return JsonView(dry=self.dry_run) if self.as_json else TextView()

    def options(self, view: View) -> MoveOptions:
        """Return how it is done, and shown.

        Raises:
            ConfigError: the bandwidth is no rate.
        """
        return {
            "dry_run": self.dry_run,
            "journal": self.journal,
            "checksum": self.checksum,
            "bandwidth": None if self.bandwidth is None else some_bytes(self.bandwidth),
            "requests": self.requests,
            "config": self.config,
            "progress": view,
        }


@dataclass(frozen=True, kw_only=True)
class GraceArguments:
    """What those have who still read what is deleted."""

    grace: Annotated[
        float,
        option(
            "--grace",
            type=click.FloatRange(min=0),
            show_default=True,
            metavar="SECONDS",
            help="Wait this long for readers of a deleted checkpoint before removing its data.",
        ),
    ] = GRACE

    def __post_init__(self) -> None:
        if not math.isfinite(self.grace):
            raise ConfigError(f"--grace is {self.grace}, not a number of seconds")


@dataclass(frozen=True, kw_only=True)
class RemovalArguments(GraceArguments):
    """What becomes of the source."""

    delete_source: Annotated[
        bool,
        flag(
            "--delete-source",
            help="Remove from SRC what has been verified at DST.",
        ),
    ] = False


class Links(StrEnum):
    """What becomes of symbolic links in a folder."""

    follow = "follow"
    skip = "skip"


@dataclass(frozen=True, kw_only=True)
class SpecialArguments:
    """What becomes of what is no file."""

    links: Annotated[
        Links,
        option(
            "--links",
            type=click.Choice(Links),
            show_default=True,
            help="Copy what links in a folder point to, or leave links out.",
        ),
    ] = Links.follow
    skip_special: Annotated[
        bool,
        flag(
            "--skip-special",
            help="Do not fail because something is not a file or has no usable name.",
        ),
    ] = False

    @property
    def follow(self) -> bool:
        """Whether links are followed."""
        return self.links is Links.follow


def judge(result: MigrationResult, view: View) -> None:
    """End a command that was stopped, or that has failed in something.

    Raises:
        Exit: with 1 if not everything was moved, or as the signal that stopped it wants.
    """
    if result.last.trouble:
        print_error(
            TierstoreError(
                f"it stopped before its end: {result.last.trouble}",
                hint="run the same command again to resume",
            )
        )
        raise click.exceptions.Exit(1)
    if view.signals:
        raise click.exceptions.Exit(INTERRUPTED + view.signals[0])
    if result.failed:
        raise click.exceptions.Exit(1)


def leave(result: MigrationResult, special: SpecialArguments) -> None:
    """End a command that has failed in nothing.

    Raises:
        Exit: with 1 if something was left out that had better not be.
    """
    if result.last.left_out and not special.skip_special:
        raise click.exceptions.Exit(1)
