"""`tierstore show`: what is in one checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tierstore.cli.options import (
    config_option,
    json_option,
    run_argument,
    step_argument,
    tier_option,
)
from tierstore.cli.output import (
    console,
    count,
    print_error,
    print_json,
    print_unseen,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from tierstore.operations.inspect import Details


@click.command
@run_argument("run")
@step_argument("step")
@config_option("config")
@tier_option("tier")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option(
    "--match", "-m", default="", help="Only names that match this glob; implies --tensors."
)
@json_option("as_json")
def run(
    run: str,
    step: int | None,
    config: tuple[str, ...],
    tier: str | None,
    tensors: bool,
    match: str,
    as_json: bool,
) -> None:
    """Show one checkpoint: its size, ranks, parent, tiers, values and tensors.

    A tier whose copy cannot be looked at is reported, and the exit code is 1.
    """
    from tierstore.operations.inspect import NoCopyError, show

    like = match or ("*" if tensors else None)
    try:
        found = show(config, run, step, tier=tier, tensors=like)
    except NoCopyError as error:
        for each in error.errors[:-1]:
            print_error(each)
        raise error.errors[-1] from None
    print_json(found.to_json()) if as_json else _print(found)
    print_unseen(found.unseen)
    print_unseen(found.troubles)
    if match and not found.tensors:
        say(f"no tensor is named like {match!r}", stderr=True)
    if found.unseen or found.troubles:
        raise click.exceptions.Exit(1)


def _print(found: Details) -> None:
    say(found.run, bold=True, nl=False)
    say(
        f" step {found.step}  launch {found.launch}, try {found.number}, "
        f"{count(found.world_size, 'rank')}"
        + (
            f", goes on from step {found.parent[1]} of launch {found.parent[0]}"
            if found.parent
            else ""
        )
    )
    say(
        f"{size(found.nbytes)} in {count(found.tensor_count, 'tensor')}, "
        f"{count(found.chunks, 'chunk')}, {count(found.files, 'file')}, "
        f"format {found.format}"
    )
    for tier, where in found.tiers.items():
        ranks = found.ranks[tier]
        only = f"  ({ranks} of {found.world_size} ranks)" if ranks != found.world_size else ""
        say(f"  {tier}: {where}{only}")
    for name, value in found.values.items():
        text = value if len(value) <= 60 else f"{value[:57]}..."
        say(f"  {name} = {text}")
    if found.tensors:
        rows = table(("tensor", "dtype", "shape", "chunks"), right=("chunks",))
        for row in found.tensors:
            shape = "x".join(map(str, row.shape)) or "scalar"
            rows.add_row(row.name, row.dtype, shape, str(row.chunks))
        console().print(rows)
