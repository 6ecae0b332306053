"""`tierstore import`: a foreign checkpoint becomes a step of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.conversion import ConversionArguments
from tierstore.cli.options import PLACE, argument, flag, option, run_argument, takes
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import bars
from tierstore.text import some

if TYPE_CHECKING:
    from tierstore.operations.convert import Imported


@dataclass(frozen=True, kw_only=True)
class ImportArguments(ConversionArguments):
    """What is imported, and what it becomes."""

    source: Annotated[str, argument(type=PLACE, help="A path or URL.")]
    run: Annotated[str, run_argument]
    step: Annotated[int, argument(type=click.IntRange(min=0), help="The step it becomes.")]
    tier: Annotated[
        str | None, option("--tier", "-t", help="Only to this tier. Default: to all.")
    ] = None
    form: Annotated[
        str, option("--from", metavar="FORMAT", help="hf, torch or dcp. Default: guessed.")
    ] = ""
    force: Annotated[
        bool, flag("--force", help="Go back: the run's steps from STEP on are abandoned.")
    ] = False


@click.command
@takes(ImportArguments)
def run(given: ImportArguments) -> None:
    """Import a torch.save file, a DCP folder or Hugging Face safetensors as a step of a run.

    Reads a part at a time, so a model of any size needs little memory, and commits last. Nothing is
    unpickled that could run code, unless --allow-pickle says so.
    """
    from tierstore.operations.convert import import_step

    with bars() as progress:
        done = import_step(
            given.source,
            given.run,
            given.step,
            given.config,
            **given.options(progress, tier=given.tier, form=given.form, force=given.force),
        )
    print_json(done.to_json()) if given.as_json else _print(done)


def _print(done: Imported) -> None:
    verb = "would import" if done.dry_run else "imported"
    what = f"{count(done.tensors, 'tensor')}, {count(done.values, 'value')}"
    say(
        f"{verb} {what}, {size(done.nbytes)} from {done.source} ({done.form}) as "
        f"{done.run} step {done.step} on {', '.join(done.tiers)}",
    )
    if done.not_selected:
        say(f"  not selected: {done.not_selected}")
    if done.left_out:
        say(f"  left out: {some(done.left_out, 10)}")
    if done.pickles:
        say(f"  kept as pickles, which restoring refuses by default: {some(done.pickles)}")
