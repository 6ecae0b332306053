"""What the commands share: the open ladder, and how results reach the reader."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from tierstore.errors import ConfigError, IntegrityError, StorageError, TierstoreError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tierstore.config import TierConfig
    from tierstore.ladder.tiers import OpenTier

PATIENCE = 5.0
"""Seconds that a request of somebody who waits at a terminal is repeated."""
_PIPE_WIDTH = 10_000
_LISTENER_LEFT = 141  # as the shell calls a program that SIGPIPE ended


def say(
    text: str, *, fg: str | None = None, bold: bool = False, nl: bool = True, stderr: bool = False
) -> None:
    """Print a line for people, or without `nl` a part of one; in colour on a terminal only.

    Rich could do it too, but its import takes as long as all else that most commands do.
    """
    try:
        click.secho(text, fg=fg, bold=bold or None, nl=nl, err=stderr, color=_colour())
    except BrokenPipeError:
        _listener_left(sys.stderr if stderr else sys.stdout)


def _colour() -> bool | None:
    """Return what the environment says, as Rich reads it; None if a terminal decides."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def console(*, stderr: bool = False) -> Console:
    """Return where tables and bars are shown; in a pipe without colour, and lines are not folded.

    Nothing in a text is markup: names of tensors and paths have brackets.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            _listener_left(stream)

    return Terminal(
        stderr=stderr,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def table(columns: Iterable[str], *, right: Collection[str] = ()) -> Table:
    """Return an empty table; those in `right` are for numbers; long cells are folded, not cut."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document; without an indent it is one line, for a stream of them."""
    try:
        sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _listener_left(sys.stdout)


def _listener_left(stream: TextIO) -> NoReturn:
    """End without a word; Python would complain when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(_LISTENER_LEFT)


def print_error(error: TierstoreError) -> None:
    """Print what happened and the next step on standard error."""
    say("error: ", stderr=True, nl=False, fg="red", bold=True)
    say(said(error), stderr=True)
    if step := next_step(error):
        say("next: ", stderr=True, nl=False, bold=True)
        say(step, stderr=True)


def said(error: TierstoreError) -> str:
    """Return what happened, without the hint."""
    return str(error).removesuffix(f" ({error.hint})")


def next_step(error: TierstoreError) -> str:
    """Return the error's hint, or where to look when it has none."""
    if error.hint:
        return error.hint
    if isinstance(error, StorageError):
        return "`tierstore doctor` checks every tier and says what to do"
    if isinstance(error, IntegrityError):
        return "`tierstore verify` reports all damage of a checkpoint"
    return ""


def of_tier(name: str, error: TierstoreError) -> TierstoreError:
    """Return an error as one of a tier, by its name."""
    kind = ConfigError if isinstance(error, ConfigError) else TierstoreError
    return kind(f"tier {name}: {said(error)}", hint=next_step(error))


def print_unseen(errors: Iterable[tuple[str, TierstoreError]]) -> None:
    """Print the tiers that could not be listed: whatever else was printed is not the whole."""
    for name, error in errors:
        print_error(of_tier(name, error))


@contextlib.contextmanager
def open_tiers(
    sources: Sequence[str], only: str | None = None, *, patience: float | None = PATIENCE
) -> Iterator[list[OpenTier]]:
    """Open the ladder that the options name, or one tier of it, and close it afterwards.

    Args:
        sources: a file or URLs; none for the default.
        only: the one tier to open.
        patience: seconds that a request is repeated at most; None for what each tier says.

    Raises:
        ConfigError: there is no such tier.
    """
    from tierstore.config import load_config
    from tierstore.ladder.tiers import close_ladder, open_ladder

    config = load_config(*sources)
    names = [tier.name for tier in config.tiers]
    if only is not None and only not in names:
        raise ConfigError(f"there is no tier {only!r}", hint=f"tiers: {', '.join(names)}")
    if patience is not None:
        config = replace(config, tiers=tuple(hasty(tier, patience) for tier in config.tiers))
    tiers = open_ladder(config)
    try:
        yield [tier for tier in tiers if only in (None, tier.name)]
    finally:
        close_ladder(tiers)


def hasty(tier: TierConfig, patience: float = PATIENCE) -> TierConfig:
    """Return a tier whose requests are not repeated for longer than a person waits.

    A save waits two minutes for a tier to come back; a person wants to know that it is away.
    """
    seconds = min(patience, tier.policy.retry_seconds)
    return replace(tier, policy=replace(tier.policy, retry_seconds=seconds))


def size(nbytes: float) -> str:
    """Return a size as a person reads it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def count(number: int, what: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
