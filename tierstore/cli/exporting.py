"""`tierstore export`: a step of a run becomes files that other tools read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import click

from tierstore.cli.amounts import some_bytes
from tierstore.cli.conversion import ConversionArguments
from tierstore.cli.options import (
    PLACE,
    argument,
    flag,
    option,
    run_argument,
    takes,
    tier_option,
)
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import bars
from tierstore.text import some

if TYPE_CHECKING:
    from tierstore.operations.convert import Exported


@dataclass(frozen=True, kw_only=True)
class ExportArguments(ConversionArguments):
    """What is exported, and where to."""

    run: Annotated[str, run_argument]
    target: Annotated[str, argument(type=PLACE, help="A path or URL to write to.")]
    step: Annotated[
        int | None, option("--step", "-s", type=int, help="The step. Default: the latest.")
    ] = None
    tier: Annotated[str | None, tier_option] = None
    form: Annotated[
        str, option("--to", metavar="FORMAT", help="hf, torch or dcp. Default: by the file's name.")
    ] = ""
    max_shard: Annotated[
        str, option("--max-shard-size", show_default=True, help="Bytes of one file of several.")
    ] = "5GB"
    force: Annotated[bool, flag("--force", help="Replace an earlier export.")] = False


@click.command
@takes(ExportArguments)
def run(given: ExportArguments) -> None:
    """Export a step as a torch.save file, a DCP folder or Hugging Face safetensors.

    Reads a part at a time, checked, so a model of any size needs little memory. The index or
    metadata is written last.
    """
    from tierstore.operations.convert import export_step

    with bars() as progress:
        done = export_step(
            given.run,
            given.target,
            given.step,
            given.config,
            max_shard=some_bytes(given.max_shard),
            **given.options(progress, tier=given.tier, form=given.form, force=given.force),
        )
    print_json(done.to_json()) if given.as_json else _print(done)


def _print(done: Exported) -> None:
    verb = "would export" if done.dry_run else "exported"
    what = f"{count(done.tensors, 'tensor')}, {count(done.values, 'value')}"
    say(
        f"{verb} {what}, {size(done.nbytes)} of {done.run} step {done.step} to "
        f"{done.target} ({done.form}, {count(len(done.files), 'file')})",
    )
    if done.not_selected:
        say(f"  not selected: {done.not_selected}")
    if done.left_out:
        say(f"  left out, no tensors: {some(done.left_out, 10)}")
    if done.note:
        say(f"  {done.note}")
