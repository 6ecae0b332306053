"""`tierstore ls`: which runs and steps there are, and on which tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tierstore.cli.options import config_option, json_option, run_argument
from tierstore.cli.output import (
    console,
    of_tier,
    open_tiers,
    print_json,
    print_unseen,
    say,
    table,
)
from tierstore.errors import CheckpointNotFoundError, StorageError, TierstoreError
from tierstore.keys import AttemptId

if TYPE_CHECKING:
    from tierstore.ladder.survey import Survey
    from tierstore.ladder.tiers import OpenTier

Unseen = list[tuple[str, TierstoreError]]
"""The tiers that could not be listed, or not for one run, each with its error."""


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt and the tiers that hold its commit.

    Attributes:
        run: the run.
        step: the step saved.
        launch: which launch saved it.
        number: which try.
        nonce: of the launch, which tells it from another of its number; empty if deleted.
        line: "latest", "timeline" (what a restore can choose), "part" (newer, and every tier that
            has it holds some of its ranks), "abandoned" or "deleted".
        tiers: where it is committed.
    """

    run: str
    step: int
    launch: int
    number: int
    nonce: str
    line: str
    tiers: list[str]

    def to_json(self) -> dict[str, object]:
        """Return it under the names that `tierstore show` uses."""
        numbers = {"step": self.step, "launch": self.launch, "try": self.number}
        line = {"nonce": self.nonce, "line": self.line, "tiers": self.tiers}
        return {"run": self.run, **numbers, **line}


@click.command
@run_argument("run", required=False, help="A run; all runs if left out.")
@config_option("config")
@click.option(
    "--all", "-a", "everything", is_flag=True, help="Also abandoned lines and deleted steps."
)
@json_option("as_json")
def run(run: str | None, config: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List checkpoints, newest first, and the tiers that hold them.

    A tier that cannot be listed is reported, the others are shown, and the exit code is 1.
    """
    with open_tiers(config) as tiers:
        names, unseen = ([run], []) if run else _runs(tiers)
        rows = [row for name in names for row in _rows(tiers, name, unseen)]
        everyone = [tier.name for tier in tiers]
    if unseen and not rows:  # "there is none" would be a guess
        print_unseen(unseen[:-1])
        raise of_tier(*unseen[-1])
    if run and not rows:
        raise CheckpointNotFoundError(
            f"run {run!r} has no checkpoint on {', '.join(everyone)}",
            hint="`tierstore ls` lists every run",
        )
    shown = [row for row in rows if everything or row.line in ("part", "latest", "timeline")]
    if as_json:
        print_json([row.to_json() for row in shown])
    else:
        _print(shown, everyone, unseen, hidden=len(rows) - len(shown))
    if unseen:
        print_unseen(unseen)
        raise click.exceptions.Exit(1)


def _runs(tiers: Sequence[OpenTier]) -> tuple[list[str], Unseen]:
    from tierstore.checkpoint.store import list_runs

    names: set[str] = set()
    unseen: Unseen = []
    for tier in tiers:
        try:
            names.update(list_runs(tier.backend))
        except TierstoreError as error:
            unseen.append((tier.name, error))
    return sorted(names), unseen


def _rows(tiers: Sequence[OpenTier], run: str, unseen: Unseen) -> list[Row]:
    from tierstore.ladder.survey import survey

    away = [name for name, error in unseen if isinstance(error, StorageError)]
    seen = survey([tier for tier in tiers if tier.name not in away], run)
    unseen += seen.errors.items()
    saved, parts = seen.everything.saved, _parts(tiers, run, seen)
    line = seen.line(without=parts)
    deleted = seen.everything.deleted - {this.attempt for this in saved}
    others = saved - {*line, *parts} | {AttemptId(attempt, "") for attempt in deleted}
    kinds = dict.fromkeys(saved, "abandoned") | dict.fromkeys(line, "timeline")
    kinds |= dict.fromkeys(parts, "part") | dict.fromkeys(line[:1], "latest")
    rows = []
    for this in [*parts, *line, *sorted(others, reverse=True)]:
        kind = kinds.get(this, "deleted")
        step, launch, number = this.step, this.attempt.launch, this.attempt.number
        rows.append(Row(run, step, launch, number, this.nonce, kind, seen.holders(this)))
    return rows


def _parts(tiers: Sequence[OpenTier], run: str, seen: Survey) -> list[AttemptId]:
    """Return what is newer than all that a restore can take, and no checkpoint: some ranks only."""
    parts: list[AttemptId] = []
    while (line := seen.line(without=parts)) and _is_part(tiers, run, seen, line[0]):
        parts.append(line[0])
    return parts


def _is_part(tiers: Sequence[OpenTier], run: str, seen: Survey, this: AttemptId) -> bool:
    from tierstore.checkpoint.store import RunStore

    if this in seen.everything.whole:
        return False
    holders = seen.holders(this)
    try:
        return not any(
            RunStore(tier.backend, run).read_commit(this.attempt).whole
            for tier in tiers
            if tier.name in holders
        )
    except TierstoreError:
        return False  # a restore says what is wrong with it


def _print(rows: list[Row], tiers: list[str], unseen: Unseen, *, hidden: int) -> None:
    if rows:
        numbers = ("step", "launch", "try")
        shown = table(["run", *numbers, "line", *tiers], right=numbers)
        absent = dict.fromkeys(tiers, "-") | {tier: "?" for tier, _ in unseen}
        nonces: dict[tuple[str, int], set[str]] = {}
        for row in rows:
            nonces.setdefault((row.run, row.launch), set()).add(row.nonce)
        for row in rows:
            marks = ["yes" if tier in row.tiers else absent[tier] for tier in tiers]
            several = len(nonces[row.run, row.launch] - {""}) > 1
            launch = f"{row.launch} ({row.nonce})" if several else f"{row.launch}"
            counted = (str(row.step), launch, str(row.number))
            shown.add_row(row.run, *counted, row.line, *marks)
        console().print(shown)
    else:
        say("no checkpoints", stderr=True)
    if hidden:
        say(f"{hidden} abandoned or deleted not shown; --all shows them", stderr=True)
