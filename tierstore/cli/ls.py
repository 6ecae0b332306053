"""`tierstore ls`: which runs and steps there are, and on which tiers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tierstore.cli.output import ConfigOption, JsonOption, console, open_tiers, print_json
from tierstore.errors import CheckpointNotFoundError

if TYPE_CHECKING:
    from tierstore.ladder.tiers import OpenTier


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt and the tiers that hold its commit.

    Attributes:
        run: the run.
        step: the step saved.
        launch: which launch saved it.
        number: which try.
        line: "latest", "timeline" (what a restore can choose), "abandoned" or "deleted".
        tiers: where it is committed.
    """

    run: str
    step: int
    launch: int
    number: int
    line: str
    tiers: list[str]


def run(
    run: Annotated[str | None, typer.Argument(help="A run; all runs if left out.")] = None,
    config: ConfigOption = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also abandoned lines and deleted steps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List checkpoints, newest first, and the tiers that hold them."""
    with open_tiers(config) as tiers:
        names = [run] if run else _runs(tiers)
        rows = [row for name in names for row in _rows(tiers, name)]
        if run and not rows:
            raise CheckpointNotFoundError(
                f"run {run!r} has no checkpoint here", hint="`tierstore ls` lists every run"
            )
        shown = [row for row in rows if everything or row.line in ("latest", "timeline")]
        if as_json:
            print_json([asdict(row) for row in shown])
        else:
            _print(shown, [tier.name for tier in tiers], hidden=len(rows) - len(shown))


def _runs(tiers: list[OpenTier]) -> list[str]:
    from tierstore.checkpoint.store import list_runs

    return sorted({name for tier in tiers for name in list_runs(tier.backend)})


def _rows(tiers: list[OpenTier], run: str) -> list[Row]:
    from tierstore.ladder.find import survey

    seen = survey(tiers, run)
    if seen.errors:
        raise next(iter(seen.errors.values()))
    alive = seen.timeline
    everything = sorted({a for commits in seen.commits.values() for a in commits}, reverse=True)
    rows = []
    for attempt in [*alive, *(a for a in everything if a not in alive)]:
        holders = seen.holders(attempt)
        line = "abandoned" if holders else "deleted"
        if attempt in alive:
            line = "latest" if attempt == alive[0] else "timeline"
        rows.append(Row(run, attempt.step, attempt.launch, attempt.number, line, holders))
    return rows


def _print(rows: list[Row], tiers: list[str], *, hidden: int) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("run", "step", "launch", "try", "line", *tiers):
        table.add_column(column, justify="right" if column in ("step", "launch", "try") else "left")
    for row in rows:
        marks = ["yes" if tier in row.tiers else "-" for tier in tiers]
        numbers = (str(row.step), str(row.launch), str(row.number))
        table.add_row(row.run, *numbers, row.line, *marks)
    if rows:
        console().print(table)
    else:
        console(stderr=True).print("no checkpoints")
    if hidden:
        console(stderr=True).print(f"{hidden} abandoned or deleted not shown; --all shows them")
